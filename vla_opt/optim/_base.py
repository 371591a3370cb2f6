"""What all optimizers here share: one step skeleton around an update rule per parameter group.

State is kept in float32 (float64 for float64 parameters). Parameters in bfloat16 or float16 get a
float32 master copy, because most updates are smaller than half a step of their grid: added to the
parameter itself they round to nothing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

type Group = dict[str, Any]
type Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One parameter with a gradient, as an update rule sees it."""

    weight: Tensor  # what the rule changes in place: the parameter, or its float32 master copy
    grad: Tensor  # never written; may have a lower precision than weight
    state: dict[str, Tensor]

    def buffer(self, key: str) -> Tensor:
        """The state tensor `key`, zeros of the weight's shape and dtype at first, contiguous."""
        if key not in self.state:
            self.state[key] = torch.zeros_like(
                self.weight, memory_format=torch.contiguous_format, requires_grad=False
            )
        return self.state[key]

    def step(self) -> Tensor:
        """The number of updates made so far: a float32 scalar on the weight's device."""
        if "step" not in self.state:
            self.state["step"] = torch.zeros((), dtype=torch.float32, device=self.weight.device)
        return self.state["step"]


class UpdateRule(Protocol):
    """How the parameters of one group are updated. Rules hold no state: it lives in the slots."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Options of a group beside lr and params, with their default values."""

    def check(self, group: Group) -> None:
        """Raise ValueError if an option or the shape of a parameter does not fit."""

    def update(self, group: Group, slots: Sequence[Slot]) -> None:
        """Change `weight` and state of every slot in place."""


class NonFiniteGradientError(FloatingPointError):
    """A gradient held NaN or infinity; no parameter and no state was changed.

    Attributes:
        names: the parameters concerned.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        super().__init__(
            f"Gradient of {shown} is not finite. Nothing was updated. Look at the batch and the "
            "loss of this step; a lower learning rate or gradient clipping may help."
        )


class RuleOptimizer(Optimizer):
    """A `torch.optim.Optimizer` that leaves the arithmetic to the rule of each group.

    `.grad` is only read. Parameters without a gradient are skipped and keep their state.
    """

    def _rule(self, group: Group) -> UpdateRule:
        raise NotImplementedError

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; refused, and not added, if its options do not fit its parameters."""
        super().add_param_group(param_group)
        try:
            check_common(param_group)
            self._rule(param_group).check(param_group)
        except ValueError:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: recomputes the loss and the gradients, and returns the loss.

        Raises:
            NonFiniteGradientError: a gradient holds NaN or infinity (before anything is changed).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        _check_gradients(self.param_groups)
        for group in self.param_groups:
            members = [p for p in group["params"] if p.grad is not None]
            slots = [_slot(parameter, self.state[parameter]) for parameter in members]
            if slots:
                self._rule(group).update(group, slots)
            for parameter, slot in zip(members, slots, strict=True):
                if slot.weight is not parameter:
                    parameter.copy_(slot.weight)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, bit by bit.

        torch casts state to the dtype of its parameter, which would round the float32 momentum and
        master copy of a bfloat16 parameter; here state keeps the dtype it was saved with.
        """
        seen: dict[str, Any] = {}  # the state dict as the hooks registered before this one left it
        handle = self.register_load_state_dict_pre_hook(lambda _, final: seen.update(final))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        for group, saved_group in zip(self.param_groups, seen["param_groups"], strict=True):
            for parameter, index in zip(group["params"], saved_group["params"], strict=True):
                for key, value in seen["state"].get(index, {}).items():
                    self.state[parameter][key] = _loaded(parameter, key, value)


def parameter_names(group: Group) -> list[str]:
    """Names of a group's parameters; their position and shape where none were given."""
    if "param_names" in group:
        return list(group["param_names"])
    shapes = (tuple(parameter.shape) for parameter in group["params"])
    return [f"parameter {i} with shape {shape}" for i, shape in enumerate(shapes)]


def check_common(group: Group) -> None:
    """Raise ValueError for options every group has, and for parameters no rule can update."""
    for key in ("lr", "weight_decay"):
        if not 0.0 <= float(group[key]) < float("inf"):
            raise ValueError(f"{key} must be a finite number >= 0, got {group[key]!r}")
    for name, parameter in zip(parameter_names(group), group["params"], strict=True):
        if not parameter.is_floating_point():
            raise ValueError(f"{name} is {parameter.dtype}; only real floating point is supported")


def _check_gradients(groups: Sequence[Group]) -> None:
    gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    if any(g.is_sparse for g in gradients):
        raise ValueError("sparse gradients are not supported: use sparse=False in nn.Embedding")
    if torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
        return
    bad = [
        name if "param_names" in group else f"{name} of group {position}"
        for position, group in enumerate(groups)
        for name, p in zip(parameter_names(group), group["params"], strict=True)
        if p.grad is not None and not torch.isfinite(p.grad).all()
    ]
    if bad:  # otherwise only the norm overflowed
        raise NonFiniteGradientError(bad)


def _slot(parameter: Tensor, state: dict[str, Tensor]) -> Slot:
    weight = parameter
    if parameter.dtype in (torch.bfloat16, torch.float16):
        weight = state["master"] = _master(parameter, state.get("master"))
    return Slot(weight=weight, grad=cast(Tensor, parameter.grad), state=state)


def _master(parameter: Tensor, master: Tensor | None) -> Tensor:
    """The float32 copy; entries that somebody else changed in the parameter follow it."""
    current = parameter.detach().to(torch.float32, memory_format=torch.contiguous_format)
    if master is None:
        return current
    return torch.where(master.to(parameter.dtype) == parameter, master, current).contiguous()


def _loaded(parameter: Tensor, key: str, value: Tensor) -> Tensor:
    if key != "step" and value.shape != parameter.shape:
        raise ValueError(
            f"state {key!r} has shape {tuple(value.shape)}, its parameter "
            f"{tuple(parameter.shape)}: this state dict belongs to another model or "
            "another order of parameters"
        )
    return value.detach().to(parameter.device, copy=True).contiguous()
