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
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from vla_opt._singular_values import LayerReading, layer_reading, singular_values
from vla_opt._spectral_reading import (
    GroupReading,
    Reading,
    Spectrum,
    mapped_values,
    spectrum,
    spectrum_of,
)
from vla_opt.optim._base import RuleOptimizer
from vla_opt.optim._matrix import matrices_of
from vla_opt.spectral import Coefficients, SpectralMeasures, high_pass

__all__ = [
    "GroupReading",
    "Reading",
    "SpectralMeter",
    "Spectrum",
    "coefficients_of",
    "mapped_values",
    "momentum_of",
    "spectrum",
]

logger = logging.getLogger(__name__)

# A matrix counts as standing still when its step is this small beside lr (Pion moves by at least
# 0.2 / sqrt(min(m, n)) lr when one direction passes), or lost in float32's rounding of its weights.
_STILL_PER_LR = 1e-4
_STILL_PER_WEIGHT = 2.0**-23


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
    decayed: Tensor  # the weight before the step, as decay alone would leave it
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


@dataclass(frozen=True, kw_only=True)
class _Look:
    """One matrix of a parameter: its singular values (k,) by kind, zero matrices left out."""

    name: str
    shape: tuple[int, ...]
    sigmas: Mapping[str, Tensor]


class SpectralMeter:
    """Measures an optimizer every n steps.

    Args:
        optimizer: any torch optimizer; state called "momentum", "momentum_buffer" or "exp_avg" is
            taken as momentum, a float32 "master" copy as the weight.
        every: steps between readings; 0 turns the meter off.
        max_matrices: matrices per group and reading whose singular values are looked at (three
            eigendecompositions each), spread evenly over the group; step sizes and what the
            spectral map gives away are measured for every tensor.
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
        self._figures: Mapping[Tensor, SpectralMeasures] = {}
        self._measuring = ExitStack()

    def before_step(self, step: int) -> None:
        """To be called right before optimizer.step(), with gradients in place.

        Args:
            step: number of the step about to be made; a reading is due when `every` divides it.
        """
        self._before = None
        self._measuring.close()
        if self.every == 0 or step % self.every:
            return
        self._step = step
        if isinstance(self.optimizer, RuleOptimizer):
            self._figures = self._measuring.enter_context(self.optimizer.measured())
        self._before = [self._snapshot(group) for group in self.optimizer.param_groups]

    def after_step(self) -> Reading | None:
        """To be called right after optimizer.step(); the reading, if one was due."""
        if self._before is None:
            return None
        before, self._before = self._before, None
        self._measuring.close()
        groups: dict[str, GroupReading] = {}
        dead: list[str] = []
        layers: list[LayerReading] = []
        for position, (group, snapshots) in enumerate(
            zip(self.optimizer.param_groups, before, strict=True)
        ):
            if snapshots:
                moves = self._moves(group, snapshots, position)
                name = group.get("name", f"group {position}")
                looks = self._looks(group, moves)
                groups[name] = self._read(group, moves, looks)
                layers += [layer_reading(k.name, name, k.shape, k.sigmas) for k in looks]
                dead += self._count(moves)
        reading = Reading(
            step=self._step, groups=groups, dead_layers=tuple(dead), layers=tuple(layers)
        )
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
                decayed=s.decayed,
                update_rms=_rms(self._weight(s.parameter).float() - s.decayed),
                weight_rms=_rms(s.decayed),
            )
            for s in snapshots
        ]

    def _count(self, moves: Sequence[_Move]) -> list[str]:
        for move in moves:
            self._still[move.name] = self._still[move.name] + 1 if move.still else 0
        return [move.name for move in moves if self._still[move.name] == self.patience]

    def _read(
        self, group: Mapping[str, Any], moves: Sequence[_Move], looks: Sequence[_Look]
    ) -> GroupReading:
        sizes = [move.parameter.numel() for move in moves]
        update = _joint_rms([move.update_rms for move in moves], sizes)
        weight = _joint_rms([move.weight_rms for move in moves], sizes)
        spectra = _spectra(group, looks)
        figures = self._given_away(moves) or _means(spectra)
        return GroupReading(
            algorithm=group.get("algorithm", type(self.optimizer).__name__.lower()),
            stable_rank=figures.get("stable_rank"),
            effective_rank=_mean([s.effective_rank for s in spectra]),
            top_energy=figures.get("top_energy"),
            directions_passed=figures.get("directions_passed"),
            update_rms=update,
            weight_rms=weight,
            update_to_weight=update / weight if weight > 0.0 else None,
            zero_updates=sum(move.still for move in moves),
            tensors=len(moves),
            matrices=sum(move.parameter.ndim >= 2 for move in moves),
        )

    def _given_away(self, moves: Sequence[_Move]) -> dict[str, float]:
        """Means of what the step's own products told, over all matrices that are not zero."""
        known = [self._figures[m.parameter] for m in moves if m.parameter in self._figures]
        if not known:
            return {}
        figures = SpectralMeasures.joined(known)
        there = figures.top_energy > 0.0
        if not there.any():
            return {}
        return {
            "stable_rank": figures.stable_rank[there].mean().item(),
            "top_energy": figures.top_energy[there].mean().item(),
            "directions_passed": figures.directions_passed[there].mean().item(),
        }

    def _looks(self, group: Mapping[str, Any], moves: Sequence[_Move]) -> list[_Look]:
        """Singular values of at most `max_matrices` matrices, heads in turn."""
        matrices = [move for move in moves if move.parameter.ndim >= 2]
        stride = max(1.0, len(matrices) / self.max_matrices)
        count = min(len(matrices), self.max_matrices)
        looks = [self._look(group, matrices[int(i * stride)], i) for i in range(count)]
        return [look for look in looks if look.sigmas]

    def _look(self, group: Mapping[str, Any], move: _Move, turn: int) -> _Look:
        parameter = move.parameter
        state = self.optimizer.state.get(parameter, {})
        tensors = {
            "gradient": parameter.grad,
            "momentum": _seen_by_map(group, parameter, state),
            "update": self._weight(parameter).float() - move.decayed,
        }
        sigmas, shape = {}, ()
        for kind, tensor in tensors.items():
            if tensor is not None:
                if hasattr(tensor, "full_tensor"):  # cut among processes, which all come here
                    tensor = tensor.full_tensor()
                cut = [matrix for stack in matrices_of(group, tensor) for matrix in stack]
                matrix = cut[turn % len(cut)]
                shape = tuple(matrix.shape)
                found = singular_values(matrix.to(torch.float64).unsqueeze(0))
                if found is not None:
                    sigmas[kind] = found[0]
        return _Look(name=move.name, shape=shape, sigmas=sigmas)


def _spectra(group: Mapping[str, Any], looks: Sequence[_Look]) -> list[Spectrum]:
    """Figures of the momenta."""
    coefficients, normalize = coefficients_of(group), group.get("normalize", "frobenius")
    momenta = [look.sigmas["momentum"] for look in looks if "momentum" in look.sigmas]
    return [spectrum_of(sigma, coefficients, normalize) for sigma in momenta]


def _means(spectra: Sequence[Spectrum]) -> dict[str, float | None]:
    passed = [s.directions_passed for s in spectra if s.directions_passed is not None]
    return {
        "stable_rank": _mean([s.stable_rank for s in spectra]),
        "top_energy": _mean([s.top_energy for s in spectra]),
        "directions_passed": _mean(passed),
    }


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
