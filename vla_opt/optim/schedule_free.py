"""Schedule-free training: no decay of the rate, the weights are averaged instead.

Parameters hold y, where gradients are taken; `optimizer.eval()` turns them into the average x, and
`optimizer.train()` back (arXiv 2405.15682). With z the fast iterate, y = (1 - beta) z + beta x.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vla_opt.optim._base import Group, Params, RuleOptimizer, Slot, UpdateRule
from vla_opt.optim._batches import MAX_BATCH_ELEMENTS
from vla_opt.optim._matrix import check_matrix_group, split_matrices
from vla_opt.spectral import NEWTON_SCHULZ, measured_spectral_map, spectral_map

# Ways to cut a parameter that exist elsewhere and not here.
_NO_CUT = dict.fromkeys(("num_heads", "head_axis", "head_size", "split_sizes"))
_COUNTERS = ("k", "weight_sum", "lr_max")


class ScheduleFreeAdamWRule:
    """One step of the `schedulefree` package's AdamW for parameters of any shape."""

    elementwise = True

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Options of a group beside lr and params, and the package's counters."""
        return {
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.0,
            "warmup_steps": 0,
            "r": 0.0,
            "weight_lr_power": 2.0,
            "train_mode": True,
            "k": 0,
            "weight_sum": 0.0,
            "lr_max": -1.0,
        }

    def check(self, group: Group) -> None:
        """Raise ValueError if an option is out of range, ImportError without the package."""
        _package()
        if not _untraced:  # here, because torch's compiler takes a second to import
            _untraced.append(torch.compiler.disable(_package_step))
        beta1, beta2 = group["betas"]
        if not (0.0 < beta1 < 1.0 and 0.0 <= beta2 < 1.0):
            raise ValueError(f"betas must lie in (0, 1) and [0, 1), got {group['betas']!r}")

    def interpolation(self, group: Group) -> float:
        """Beta of y = (1 - beta) z + beta x."""
        return float(group["betas"][0])

    def update(self, group: Group, slots: Sequence[Slot]) -> None:
        """One step of the package's optimizer on tensors that share memory with the slots.

        It works in the memory of the gradients: those are copies.
        """
        refuse_averaged(group)
        _untraced[0](group, slots, {k: group[k] for k in self.defaults if k != "train_mode"})


# `_package_step`, left alone by torch.compile, which cannot trace the making of an optimizer.
_untraced: list[Callable[..., None]] = []


def _package_step(group: Group, slots: Sequence[Slot], options: Mapping[str, Any]) -> None:
    weights = [slot.weight.detach() for slot in slots]
    for weight, slot in zip(weights, slots, strict=True):
        weight.grad = slot.grad.to(weight.dtype, copy=True)
        fast_iterate(slot)
        slot.buffer("exp_avg_sq")
    counters = {key: options[key] for key in _COUNTERS}
    plain = {key: value for key, value in options.items() if key not in _COUNTERS}
    inner = _package()(weights, lr=float(group["lr"]), **plain)
    [own] = inner.param_groups
    own.update({"train_mode": True, **counters})
    for weight, slot in zip(weights, slots, strict=True):
        inner.state[weight] = {key: slot.state[key] for key in ("z", "exp_avg_sq")}
        slot.step().add_(1.0)
    inner.step()
    group.update({key: own[key] for key in _COUNTERS})


def _package() -> Any:
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError as error:
        raise ImportError(
            "ScheduleFreeAdamW runs the schedulefree package, which is not installed: "
            "pip install 'vla-opt[schedulefree]'"
        ) from error
    return AdamWScheduleFree


def refuse_averaged(group: Group) -> None:
    """Raise RuntimeError if the parameters hold the average."""
    if not group["train_mode"]:
        raise RuntimeError(
            "the parameters hold the average: call optimizer.train() before the next step"
        )


def fast_iterate(slot: Slot) -> Tensor:
    """The state z: at first a copy of the weight."""
    if "z" not in slot.state:
        slot.state["z"] = slot.weight.detach().clone(memory_format=torch.contiguous_format)
    return slot.state["z"]


class SFNorMuonRule:
    """One step of schedule-free NorMuon for a group of matrices."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Options of a group beside lr and params."""
        return {
            "momentum": 0.95,
            "row_beta": 0.95,
            "averaging": 0.9,
            "weight_decay": 0.01,
            "update_scale": 0.2,
            "warmup_steps": 0,
            "coefficients": NEWTON_SCHULZ,
            "eps": 1e-8,
            "train_mode": True,
        }

    def check(self, group: Group) -> None:
        """Raise ValueError if an option or a parameter's shape does not fit."""
        check_matrix_group({**_NO_CUT, **group})
        for key, low in (("row_beta", 0.0), ("averaging", 1e-6)):
            if not low <= group[key] < 1.0:
                raise ValueError(f"{key} must lie in [{low:g}, 1), got {group[key]!r}")
        if group["warmup_steps"] < 0:
            raise ValueError(f"warmup_steps must be >= 0, got {group['warmup_steps']!r}")

    def interpolation(self, group: Group) -> float:
        """Beta of y = (1 - beta) z + beta x."""
        return float(group["averaging"])

    def update(self, group: Group, slots: Sequence[Slot]) -> None:
        """Momentum, orthogonalisation, row normalisation, step of z, average, interpolation."""
        refuse_averaged(group)
        for batch in _same_shape(slots):
            momenta = []
            for slot in batch:
                momentum = slot.buffer("momentum")
                momentum.lerp_(slot.grad.to(momentum.dtype), 1.0 - group["momentum"])
                momenta.append(split_matrices(momentum, None, None))
            for slot, P in zip(batch, _mapped(group, batch, momenta), strict=True):
                _advance(group, slot, _row_normalised(group, slot, P))


def _mapped(group: Group, slots: Sequence[Slot], momenta: Sequence[Tensor]) -> Sequence[Tensor]:
    """The map of momenta of one shape, (count, m, n) each; figures for slots that ask."""
    counts, stack = [len(M) for M in momenta], torch.cat(list(momenta))
    if all(slot.measures is None for slot in slots):
        return torch.split(spectral_map(stack, group["coefficients"]), counts)
    mapped, figures = measured_spectral_map(stack, group["coefficients"])
    for slot, own in zip(slots, figures.split(counts), strict=True):
        if slot.measures is not None:
            slot.measures.append(own)
    return torch.split(mapped, counts)


def _same_shape(slots: Sequence[Slot]) -> Iterator[list[Slot]]:
    """Slots whose momenta share a stack, in lists below the memory cap (or of one slot)."""
    found: dict[Any, list[Slot]] = {}
    for slot in slots:
        key = (slot.weight.shape, slot.weight.dtype, slot.weight.device)
        found.setdefault(key, []).append(slot)
    for members in found.values():
        room = max(1, MAX_BATCH_ELEMENTS // max(1, members[0].weight.numel()))
        yield from (members[i : i + room] for i in range(0, len(members), room))


def _row_normalised(group: Group, slot: Slot, P: Tensor) -> Tensor:
    """P (count, m, n) with each row over the root of its averaged mean square, at norm one."""
    if "row_square" not in slot.state:
        slot.state["row_square"] = P.new_zeros(P.shape[0] * P.shape[1], 1)
    rows = slot.state["row_square"].view(P.shape[0], P.shape[1], 1)
    rows.lerp_(P.square().mean(dim=2, keepdim=True), 1.0 - group["row_beta"])
    scaled = P / (rows.sqrt() + float(group["eps"]))
    norm: Tensor = torch.linalg.vector_norm(scaled, dim=(1, 2), keepdim=True)
    return scaled / norm.clamp_min(torch.finfo(P.dtype).tiny)


def _advance(group: Group, slot: Slot, direction: Tensor) -> None:
    """z and y after a step along `direction` (count, m, n), whose matrices have norm one."""
    y, z, beta = slot.weight, fast_iterate(slot), group["averaging"]
    if "weight_sum" not in slot.state:
        slot.state["weight_sum"] = torch.zeros((), dtype=torch.float32, device=y.device)
    count, total = slot.step().add_(1.0), slot.state["weight_sum"]
    lr = float(group["lr"])
    rate = lr * (count / max(1, group["warmup_steps"])).clamp_max(1.0)
    x = torch.lerp(y, z, 1.0 - 1.0 / beta)
    size = group["update_scale"] * math.sqrt(direction.shape[1] * direction.shape[2])
    z.mul_(1.0 - lr * group["weight_decay"])
    z.sub_((direction * (rate * size)).reshape(z.shape))
    total.add_(rate.square())
    share = torch.where(total > 0, rate.square() / total, 0.0).to(x.dtype)
    x = torch.lerp(x, z, share)
    y.copy_(torch.lerp(z, x, beta))


class ScheduleFreeAdamW(RuleOptimizer):
    """AdamW with averaged weights instead of a schedule (arXiv 2405.15682).

    Runs the authors' package `schedulefree` (pip install 'vla-opt[schedulefree]') under the
    contract of this library: gradients are not written (they are copied once a step), 16-bit
    parameters get masters, state is contiguous, shards stay shards. Use a constant rate, 1 to 10
    times that of scheduled AdamW, and evaluate and save the average:

        with optimizer.averaged():
            evaluate(model)

    or optimizer.eval() ... optimizer.train(), which round once each way. Batch norm's statistics
    belong to the weights they were made with: re-estimate them for the average.

    Args:
        params: parameters of any shape, pairs or groups.
        lr: learning rate.
        betas: interpolation between z and x, and decay of the squares.
        eps: added to the root.
        weight_decay: decoupled, at y.
        warmup_steps: steps over which the rate rises.
        r: power of the step in the weights of the average.
        weight_lr_power: power of the rate in them.

    Raises:
        ImportError: the package is not installed.
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 0.0025,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
    ) -> None:
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "r": r,
            "weight_lr_power": weight_lr_power,
        }
        super().__init__(params, {**ScheduleFreeAdamWRule().defaults, **options})

    def _rule(self, group: Group) -> UpdateRule:
        return ScheduleFreeAdamWRule()


class SFNorMuon(RuleOptimizer):
    """Schedule-free NorMuon (arXiv 2605.23061), written from its formulas; no code was published.

    At step t, with W holding y, for every matrix (m, n) with gradient G:

        M <- mu M + (1 - mu) G,   P = spectral_map(M),   v <- b v + (1 - b) mean of P^2 per row
        D = P / (sqrt(v) + eps),  D <- D / ||D||
        rate = lr * min(1, t / warmup_steps)
        z <- z - lr * weight_decay * z - rate * update_scale * sqrt(m n) * D
        x <- the average of all z so far, weighted by rate^2
        y = (1 - averaging) z + averaging x

    Weight decay acts on the fast iterate z. The published default numbers are not known: those here
    are NorMuon's and schedule-free AdamW's. Use `averaged` or eval() and train() as for
    `ScheduleFreeAdamW`.

    Args:
        params: matrices, stacks of them or convolutions, as for `Muon`.
        lr: learning rate, constant.
        momentum: decay mu.
        row_beta: decay b of the rows' mean squares.
        averaging: interpolation between z and x.
        weight_decay: decoupled, of z.
        update_scale: 0.2 makes the root mean square of a step that of AdamW's.
        warmup_steps: steps over which the rate rises.
        coefficients: of the spectral map.
        eps: added to the root.

    Raises:
        ValueError: an option is out of range, or a parameter is not a matrix.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        *,
        momentum: float = 0.95,
        row_beta: float = 0.95,
        averaging: float = 0.9,
        weight_decay: float = 0.01,
        update_scale: float = 0.2,
        warmup_steps: int = 0,
        coefficients: Sequence[tuple[float, float, float]] = NEWTON_SCHULZ,
        eps: float = 1e-8,
    ) -> None:
        options = {
            "lr": lr,
            "momentum": momentum,
            "row_beta": row_beta,
            "averaging": averaging,
            "weight_decay": weight_decay,
            "update_scale": update_scale,
            "warmup_steps": warmup_steps,
            "coefficients": coefficients,
            "eps": eps,
            "train_mode": True,
        }
        super().__init__(params, options)

    def _rule(self, group: Group) -> UpdateRule:
        return SFNorMuonRule()
