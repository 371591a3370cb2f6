"""What the optimizer sees and does, per group: spectra, step sizes, layers that stand still.

    meter = SpectralMeter(optimizer, every=50)
    ...
    meter.before_step(step)
    optimizer.step()
    if reading := meter.after_step():
        log(reading.row())

Between readings the cost is one comparison per call.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from vla_opt.optim._matrix import matrices_of
from vla_opt.spectral import SPECTRAL_MARGIN, Coefficients, Normalize, high_pass, scalar_map

logger = logging.getLogger(__name__)

# A matrix counts as standing still when its step is this small beside lr (Pion moves by at least
# 0.2 / sqrt(min(m, n)) lr when one direction passes), or lost in float32's rounding of its weights.
_STILL_PER_LR = 1e-4
_STILL_PER_WEIGHT = 2.0**-23


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Figures of one matrix' singular values.

    Attributes:
        stable_rank: squared Frobenius norm over squared spectral norm.
        effective_rank: exp of the entropy of the singular values' shares (arXiv 2605.19282).
        top_energy: share of the squared norm held by the first direction.
        directions_passed: squared norm of the mapped matrix, about the number of directions that
            the map lets through; None without a map.
    """

    stable_rank: float
    effective_rank: float
    top_energy: float
    directions_passed: float | None


@dataclass(frozen=True, kw_only=True)
class GroupReading:
    """Figures of one parameter group; spectra are means over the matrices looked at.

    Attributes:
        algorithm: what updates the group.
        stable_rank: of the momentum, see `Spectrum`; None if the group has no matrix with momentum.
        effective_rank: of the momentum.
        top_energy: of the momentum.
        directions_passed: of the momentum under the group's map; None without one.
        update_rms: root mean square of the change made by the last step, weight decay taken out.
        weight_rms: root mean square of the weights before it.
        update_to_weight: ratio of the two; None if the weights are zero.
        zero_updates: matrices that practically did not move.
        tensors: tensors of the group that got a gradient.
        matrices: those with two or more dimensions.
    """

    algorithm: str
    stable_rank: float | None
    effective_rank: float | None
    top_energy: float | None
    directions_passed: float | None
    update_rms: float
    weight_rms: float
    update_to_weight: float | None
    zero_updates: int
    tensors: int
    matrices: int


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One measurement of all groups.

    Attributes:
        step: the step it belongs to.
        groups: figures by group name.
        dead_layers: names of matrices that have now stood still for several readings in a row,
            each named once until it moves again.
    """

    step: int
    groups: Mapping[str, GroupReading]
    dead_layers: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """The figures as a JSON-able log row."""
        groups = {name: asdict(group) for name, group in self.groups.items()}
        return {"kind": "spectra", "step": self.step, "groups": groups}

    def warning(self) -> dict[str, Any] | None:
        """A JSON-able log row that names dead layers, or None."""
        if not self.dead_layers:
            return None
        message = f"{len(self.dead_layers)} layers stand still: {', '.join(self.dead_layers)}. "
        message += _ADVICE
        layers = list(self.dead_layers)
        return {"kind": "warning", "step": self.step, "layers": layers, "message": message}


_ADVICE = (
    "Under Pion this happens when no direction of the momentum holds enough of its squared norm: "
    "more promotion_steps lower that threshold. Otherwise look for gradients that are zero."
)


def spectrum(
    matrix: Tensor,
    coefficients: Coefficients | None = None,
    normalize: Normalize = "frobenius",
) -> Spectrum | None:
    """Figures of a matrix (m, n); None if it is zero or not finite.

    Args:
        matrix: any real matrix.
        coefficients: the map whose directions are counted.
        normalize: what the map divides singular values by, see `vla_opt.spectral.spectral_map`.

    >>> spectrum(torch.eye(4), high_pass(5, 0)).effective_rank
    4.0
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    wide = wide.to(torch.float64)
    scale = wide.abs().max()
    if not 0.0 < scale.item() < math.inf:
        return None
    wide = wide / scale
    sigma = torch.linalg.eigvalsh(wide @ wide.mT).clamp_min(0.0).sqrt()
    energy = sigma.square()
    share = sigma / sigma.sum()
    entropy = -torch.special.xlogy(share, share).sum()
    top = (energy.max() / energy.sum()).item()
    passed = None
    if coefficients is not None:
        passed = mapped_values(sigma, coefficients, normalize).square().sum().item()
    return Spectrum(
        stable_rank=1.0 / top,
        effective_rank=round(math.exp(entropy.item()), 9),
        top_energy=top,
        directions_passed=passed,
    )


def mapped_values(sigma: Tensor, coefficients: Coefficients, normalize: Normalize) -> Tensor:
    """What a spectral map makes of the singular values (..., k) of matrices, at any scale.

    >>> mapped_values(torch.tensor([3.0, 0.0]), high_pass(1, 4), "frobenius")
    tensor([1., 0.])
    """
    if normalize == "spectral":
        norm = SPECTRAL_MARGIN * sigma.amax(dim=-1, keepdim=True)
    else:
        norm = torch.linalg.vector_norm(sigma, dim=-1, keepdim=True)
    return scalar_map(sigma / norm, coefficients)


@dataclass(frozen=True, kw_only=True)
class _Snapshot:
    index: int
    parameter: Tensor
    lr: float
    decayed: Tensor


@dataclass(frozen=True, kw_only=True)
class _Move:
    name: str
    parameter: Tensor
    lr: float
    update_rms: float
    weight_rms: float

    @property
    def still(self) -> bool:
        """Whether the step changed practically nothing although it was meant to.

        Of matrices only: some vectors have no gradient by nature, such as a key's bias.
        """
        if self.parameter.ndim < 2:
            return False
        limit = max(_STILL_PER_LR * self.lr, _STILL_PER_WEIGHT * self.weight_rms)
        return self.lr > 0.0 and self.update_rms <= limit


class SpectralMeter:
    """Measures an optimizer every n steps.

    Args:
        optimizer: any torch optimizer; state called "momentum", "momentum_buffer" or "exp_avg" is
            taken as momentum, a float32 "master" copy as the weight.
        every: steps between readings; 0 turns the meter off.
        max_matrices: spectra per group and reading, spread evenly over the group (an
            eigendecomposition each); step sizes are measured for every tensor.
        patience: readings in a row after which a matrix that stands still is called dead.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self, optimizer: Optimizer, *, every: int = 50, max_matrices: int = 8, patience: int = 3
    ) -> None:
        if every < 0 or max_matrices < 1 or patience < 1:
            raise ValueError(
                "SpectralMeter needs every >= 0, max_matrices >= 1 and patience >= 1, got "
                f"{every}, {max_matrices} and {patience}"
            )
        self.optimizer = optimizer
        self.every = every
        self.max_matrices = max_matrices
        self.patience = patience
        self._still: Counter[str] = Counter()
        self._step = 0
        self._before: list[list[_Snapshot]] | None = None

    def before_step(self, step: int) -> None:
        """To be called right before optimizer.step(), with gradients in place.

        Args:
            step: number of the step about to be made; a reading is due when `every` divides it.
        """
        self._before = None
        if self.every == 0 or step % self.every:
            return
        self._step = step
        self._before = [self._snapshot(group) for group in self.optimizer.param_groups]

    def after_step(self) -> Reading | None:
        """To be called right after optimizer.step(); the reading, if one was due."""
        if self._before is None:
            return None
        before, self._before = self._before, None
        groups: dict[str, GroupReading] = {}
        dead: list[str] = []
        for position, (group, snapshots) in enumerate(
            zip(self.optimizer.param_groups, before, strict=True)
        ):
            if snapshots:
                moves = self._moves(group, snapshots, position)
                groups[group.get("name", f"group {position}")] = self._read(group, moves)
                dead += self._count(moves)
        reading = Reading(step=self._step, groups=groups, dead_layers=tuple(dead))
        if warning := reading.warning():
            logger.warning("step %d: %s", reading.step, warning["message"])
        return reading

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: how many readings in a row each matrix has stood still."""
        return {"still": {name: count for name, count in self._still.items() if count}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting where `state_dict` was taken."""
        self._still = Counter(state["still"])

    def _weight(self, parameter: Tensor) -> Tensor:
        master = self.optimizer.state.get(parameter, {}).get("master", parameter)
        return cast(Tensor, master).detach()

    def _snapshot(self, group: Mapping[str, Any]) -> list[_Snapshot]:
        """The weights that the coming step will change, as weight decay alone would leave them."""
        lr = float(group["lr"])
        keep = 1.0 - lr * float(group.get("weight_decay", 0.0))
        return [
            _Snapshot(index=i, parameter=p, lr=lr, decayed=self._weight(p).float() * keep)
            for i, p in enumerate(group["params"])
            if p.grad is not None
        ]

    def _moves(
        self, group: Mapping[str, Any], snapshots: Sequence[_Snapshot], position: int
    ) -> list[_Move]:
        names = group.get("param_names")
        return [
            _Move(
                name=names[s.index] if names else f"group {position}, tensor {s.index}",
                parameter=s.parameter,
                lr=s.lr,
                update_rms=_rms(self._weight(s.parameter).float() - s.decayed),
                weight_rms=_rms(s.decayed),
            )
            for s in snapshots
        ]

    def _count(self, moves: Sequence[_Move]) -> list[str]:
        for move in moves:
            self._still[move.name] = self._still[move.name] + 1 if move.still else 0
        return [move.name for move in moves if self._still[move.name] == self.patience]

    def _read(self, group: Mapping[str, Any], moves: Sequence[_Move]) -> GroupReading:
        sizes = [move.parameter.numel() for move in moves]
        update = _joint_rms([move.update_rms for move in moves], sizes)
        weight = _joint_rms([move.weight_rms for move in moves], sizes)
        matrices = [move.parameter for move in moves if move.parameter.ndim >= 2]
        spectra = self._spectra(group, matrices)
        passed = [s.directions_passed for s in spectra if s.directions_passed is not None]
        return GroupReading(
            algorithm=group.get("algorithm", type(self.optimizer).__name__.lower()),
            stable_rank=_mean([s.stable_rank for s in spectra]),
            effective_rank=_mean([s.effective_rank for s in spectra]),
            top_energy=_mean([s.top_energy for s in spectra]),
            directions_passed=_mean(passed),
            update_rms=update,
            weight_rms=weight,
            update_to_weight=update / weight if weight > 0.0 else None,
            zero_updates=sum(move.still for move in moves),
            tensors=len(moves),
            matrices=len(matrices),
        )

    def _spectra(self, group: Mapping[str, Any], matrices: Sequence[Tensor]) -> list[Spectrum]:
        coefficients = coefficients_of(group)
        stride = max(1.0, len(matrices) / self.max_matrices)
        chosen = [matrices[int(i * stride)] for i in range(min(len(matrices), self.max_matrices))]
        found = []
        for i, parameter in enumerate(chosen):
            seen = _seen_by_map(group, parameter, self.optimizer.state.get(parameter, {}))
            if seen is not None:
                cut = [matrix for stack in matrices_of(group, seen) for matrix in stack]
                normalize = group.get("normalize", "frobenius")
                found.append(spectrum(cut[i % len(cut)], coefficients, normalize))
        return [s for s in found if s is not None]


def coefficients_of(group: Mapping[str, Any]) -> Coefficients | None:
    """The spectral map of a group, stored or live; None for algorithms without one."""
    if "promotion_steps" in group:
        return high_pass(group["promotion_steps"], group["suppression_steps"])
    return cast(Coefficients | None, group.get("coefficients"))


def momentum_of(state: Mapping[str, Any]) -> Tensor | None:
    """The averaged gradient in a parameter's state, under the name its algorithm gives it."""
    names = ("momentum", "momentum_buffer", "exp_avg")
    return next((cast(Tensor, state[name]) for name in names if name in state), None)


def _seen_by_map(
    group: Mapping[str, Any], parameter: Tensor, state: Mapping[str, Any]
) -> Tensor | None:
    """The momentum; with Nesterov, the mixture with the gradient that the map was given."""
    momentum = momentum_of(state)
    if momentum is None:
        return None
    if "momentum" not in state or not group.get("nesterov") or parameter.grad is None:
        return momentum
    return torch.lerp(parameter.grad.to(momentum.dtype), momentum, float(group["momentum"]))


def _rms(X: Tensor) -> float:
    norm: float = torch.linalg.vector_norm(X).item()
    return norm / math.sqrt(max(1, X.numel()))


def _joint_rms(parts: Sequence[float], sizes: Sequence[int]) -> float:
    squares = sum(rms * rms * size for rms, size in zip(parts, sizes, strict=True))
    return math.sqrt(squares / max(1, sum(sizes)))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
