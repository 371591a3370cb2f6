"""What all optimizers here share: one step skeleton around an update rule per parameter group.

State is kept in float32 (float64 for float64 parameters). Parameters in bfloat16 or float16 get a
float32 master copy unless `RuleOptimizer.configure` says otherwise.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, Self, cast, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from vla_opt.optim._distributed import Ranks, as_held, run_rule
from vla_opt.optim._gradients import (
    Group,
    NonFiniteGradientError,
    nonfinite_gradients,
    parameter_names,
    shortened,
)
from vla_opt.optim._names import unknown_name
from vla_opt.optim._precision import HALVES, StepOptions, master_of, write_back
from vla_opt.optim._slot import Slot
from vla_opt.spectral import SpectralMeasures

__all__ = [
    "Group",
    "NonFiniteGradientError",
    "Params",
    "RuleOptimizer",
    "Slot",
    "UpdateRule",
    "check_common",
    "parameter_names",
]

logger = logging.getLogger(__name__)

type Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]

# State that has its parameter's shape; a rule may keep other state of any shape.
_LIKE_PARAMETER = {"momentum", "master", "exp_avg", "exp_avg_sq", "z"}


class UpdateRule(Protocol):
    """How the parameters of one group are updated. Rules hold no state: it lives in the slots.

    A rule creates all its state in the first update of a parameter and counts updates in
    `slot.step()`. A rule whose entries do not see each other says so with `elementwise = True`: it
    then works on the shards of a sharded parameter; every other rule is given whole tensors.
    """

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Options of a group beside lr and params, with their default values."""

    def check(self, group: Group) -> None:
        """Raise ValueError if an option or the shape of a parameter does not fit."""

    def update(self, group: Group, slots: Sequence[Slot]) -> None:
        """Change `weight` and state of every slot in place."""


class RuleOptimizer(Optimizer):
    """A `torch.optim.Optimizer` that leaves the arithmetic to the rule of each group.

    `.grad` is only read. Parameters without a gradient are skipped and keep their state. Sharded
    parameters (DTensor, as FSDP2 makes them) are gathered on one rank each where the rule needs
    whole matrices; the result is that of a single process.

    Attributes:
        skipped_steps: steps left out so far because of gradients that were not finite.
    """

    skipped_steps: int = 0
    _options = StepOptions()
    _ranks: Ranks | None = None
    _measures: dict[Tensor, SpectralMeasures] | None = None  # of the step that is measured

    def _rule(self, group: Group) -> UpdateRule:
        raise NotImplementedError

    @property
    def options(self) -> StepOptions:
        """What `configure` chose."""
        return self._options

    def configure(self, **choices: Any) -> Self:
        """Change how steps are made: the fields of `StepOptions`, by keyword.

        >>> from vla_opt.optim import Pion
        >>> W = torch.nn.Parameter(torch.ones(2, 2))
        >>> Pion([W], lr=1e-3).configure(nonfinite="skip").options.nonfinite
        'skip'

        Raises:
            ValueError: an unknown option or choice; the message names the nearest.
        """
        for name in choices:
            if name not in StepOptions.__dataclass_fields__:
                raise unknown_name("option of configure", name, StepOptions.__dataclass_fields__)
        options = replace(self._options, **choices)
        if options.low_precision == "stochastic":
            for group in self.param_groups:
                for name, parameter in zip(parameter_names(group), group["params"], strict=True):
                    if parameter.dtype == torch.float16:
                        raise ValueError(
                            f"{name} is float16: stochastic rounding exists for bfloat16; choose "
                            'low_precision="master"'
                        )
        self._options = options
        return self

    def share_work(self, process_group: Any = None) -> Self:
        """Divide the matrices among the ranks of a data-parallel group instead of repeating all.

        For parameters and gradients that are equal on all ranks, as under DistributedDataParallel.
        Each matrix is updated by one rank, then weights and state are gathered: every rank's state
        dict is complete. Worth it where the update of the matrices takes longer than sending
        weights and state once. Algorithms that work entry by entry, such as AdamW, are repeated.

        Args:
            process_group: the ranks; the default group if None. Not copied by deepcopy or pickle.

        Raises:
            RuntimeError: torch.distributed is not initialised.
        """
        self._ranks = Ranks.of(process_group)
        return self

    @contextmanager
    def measured(self) -> Iterator[dict[Tensor, SpectralMeasures]]:
        """Within: figures of the matrices that steps map, by parameter.

        They come from what the spectral map makes anyway (Pion and Muon make its last product
        twice, as theirs goes straight into the weights) and leave the step as it is. Of a
        parameter that is several matrices (heads, experts), each field has one number for each.
        Parameters without a map, and those that another rank updated, are missing.

        >>> from vla_opt.optim import Pion
        >>> W = torch.nn.Parameter(torch.ones(2, 3))
        >>> W.grad = torch.ones(2, 3)
        >>> optimizer = Pion([W], lr=1e-3)
        >>> with optimizer.measured() as figures:
        ...     optimizer.step()
        >>> figures[W].stable_rank.round(decimals=3)
        tensor([1.])
        """
        self._measures = {}
        try:
            yield self._measures
        finally:
            self._measures = None

    def __getstate__(self) -> dict[str, Any]:
        """What deepcopy and pickle take along."""
        own = {"_options": self._options, "skipped_steps": self.skipped_steps}
        return {**super().__getstate__(), **own}

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
        if self._must_skip():
            return loss
        position = 0
        for group in self.param_groups:
            members = [(position + i, p) for i, p in enumerate(group["params"])]
            position += len(members)
            self._update(group, [(i, p) for i, p in members if p.grad is not None])
        return loss

    def _must_skip(self) -> bool:
        if self._options.nonfinite == "ignore":
            return False
        names = nonfinite_gradients(self.param_groups)
        if names and self._options.nonfinite == "raise":
            raise NonFiniteGradientError(names)
        if names:
            self.skipped_steps += 1
            logger.warning("step skipped: gradient of %s is not finite", shortened(names))
        return bool(names)

    def _update(self, group: Group, members: Sequence[tuple[int, Tensor]]) -> None:
        slots = [self._slot(parameter) for _, parameter in members]
        if slots:
            run_rule(self._rule(group), group, slots, self._ranks)
        for (_, parameter), slot in zip(members, slots, strict=True):
            if self._measures is not None and slot.measures:
                self._measures[parameter] = SpectralMeasures.joined(slot.measures)
        for (position, parameter), slot in zip(members, slots, strict=True):
            if slot.weight is not parameter:
                stochastic = self._options.low_precision == "stochastic"
                key = (position, int(slot.step())) if stochastic else ()
                write_back(parameter, slot.weight, self._options, key)

    def _slot(self, parameter: Tensor) -> Slot:
        state, weight = self.state[parameter], parameter
        if parameter.dtype in HALVES and self._options.low_precision == "master":
            weight = state["master"] = master_of(parameter, state.get("master"))
        elif parameter.dtype in HALVES:
            state.pop("master", None)
            weight = master_of(parameter, None)
        wanted: list[SpectralMeasures] | None = None if self._measures is None else []
        grad = cast(Tensor, parameter.grad)
        return Slot(weight=weight, grad=grad, state=state, measures=wanted)

    def eval(self) -> Self:
        """Put the averaged weights into the parameters of schedule-free groups."""
        return self._interpolate(training=False)

    def train(self) -> Self:
        """Put the weights that gradients are taken at back; to be called before the next step."""
        return self._interpolate(training=True)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Averaged weights within the block, and exactly the ones before it afterwards.

        Costs a copy of the weights of schedule-free groups, and nothing without such groups.
        """
        groups = [group for group in self.param_groups if group.get("train_mode")]
        kept = [(p, p.detach().clone()) for group in groups for p in group["params"]]
        masters = [(self.state[p], self.state[p]["master"].clone())
                   for p, _ in kept if "master" in self.state.get(p, {})]  # fmt: skip
        self.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, weight in kept:
                    parameter.copy_(weight)
            for state, master in masters:
                state["master"] = master
            for group in groups:
                group["train_mode"] = True

    @torch.no_grad()
    def _interpolate(self, *, training: bool) -> Self:
        for group in self.param_groups:
            if group.get("train_mode", training) == training:
                continue
            beta: float = self._rule(group).interpolation(group)  # type: ignore[attr-defined]
            for parameter in group["params"]:
                state = self.state.get(parameter, {})
                if "z" in state:
                    weight = state.get("master", parameter)
                    z = state["z"].to(weight.dtype)
                    weight.lerp_(z, 1.0 - beta if training else 1.0 - 1.0 / beta)
                    if weight is not parameter:
                        parameter.copy_(weight)
            group["train_mode"] = training
        return self

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, bit by bit.

        torch casts state to the dtype of its parameter, which would round the float32 momentum and
        master copy of a bfloat16 parameter; here state keeps the dtype it was saved with. State of
        whole parameters fits sharded ones and the other way round.
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


def check_common(group: Group) -> None:
    """Raise ValueError for options every group has, and for parameters no rule can update."""
    for key in ("lr", "weight_decay"):
        if not 0.0 <= float(group.get(key, 0.0)) < float("inf"):
            raise ValueError(f"{key} must be a finite number >= 0, got {group[key]!r}")
    for name, parameter in zip(parameter_names(group), group["params"], strict=True):
        if not parameter.is_floating_point():
            raise ValueError(f"{name} is {parameter.dtype}; only real floating point is supported")


def _loaded(parameter: Tensor, key: str, value: Tensor) -> Tensor:
    if key in _LIKE_PARAMETER and value.shape != parameter.shape:
        raise ValueError(
            f"state {key!r} has shape {tuple(value.shape)}, its parameter "
            f"{tuple(parameter.shape)}: this state dict belongs to another model or "
            "another order of parameters"
        )
    return as_held(parameter, value.detach().to(parameter.device, copy=True).contiguous())
