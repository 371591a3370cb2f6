"""Optimization by forward calls alone, composed of four choices.

    estimator (what is queried) x subspace (along what) x map (of singular values) x inner rule

A step is `plan` (queries) -> `measure` (readings) -> `conclude` (a record of seeds and scalars) ->
`apply` (the update). `step` does all four. The record alone repeats the update, which is how runs
are replayed and how workers stay equal: queries may be measured anywhere.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from vla_opt.zeroth_order._blocks import Block, assemble
from vla_opt.zeroth_order._displacement import displaced, displacement, tangents
from vla_opt.zeroth_order._forward_mode import directional_derivative
from vla_opt.zeroth_order._noise_key import fixed_noise
from vla_opt.zeroth_order._resolution import warn_if_unresolved
from vla_opt.zeroth_order._rounding import subtract_
from vla_opt.zeroth_order._seeds import NOISE, ROUNDING, generator, mix, slabs, wide
from vla_opt.zeroth_order._sites import Site, build_sites
from vla_opt.zeroth_order.estimators import AveragedBaseline, Estimator, TwoPoint
from vla_opt.zeroth_order.maps import Map
from vla_opt.zeroth_order.records import (
    NonFiniteLossError,
    Query,
    Reading,
    StepRecord,
)
from vla_opt.zeroth_order.rules import Rule, Sgd
from vla_opt.zeroth_order.subspaces import Full, Subspace

type Closure = Callable[[], Tensor | float]
type Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class ZerothOrder(Optimizer):
    """A zeroth-order optimizer; see the presets of this package for the published ones.

    The closure of `step` returns the loss and needs no backward pass; it is called without
    gradients, several times, with torch's and Python's global generators seeded equally each time,
    so that dropout or diffusion noise is the same in all queries of a step. Both are put back. A
    closure must depend on nothing else that changes (load the batch before the step).

    Directions are regenerated from seeds, weights are moved in place and put back to the last bit.

    Args:
        params: as for any torch optimizer; all of them are moved, whatever their requires_grad.
        lr: learning rate.
        estimator: see `vla_opt.zeroth_order.estimators`.
        subspace: see `vla_opt.zeroth_order.subspaces`.
        matrix_map: applied to matrix-shaped estimates; None leaves them.
        rule: inner rule.
        epsilon: length of a move along a direction.
        seed: of all directions.
        weight_decay: multiplied by lr, for matrices only.
        vector_lr_ratio: learning rate of everything but matrices, divided by lr.
        noise_device: where noise is drawn. "cpu" gives the same run on every device.

    Raises:
        ValueError: an option is out of range or does not fit the others.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        *,
        estimator: Estimator | None = None,
        subspace: Subspace | None = None,
        matrix_map: Map | None = None,
        rule: Rule | None = None,
        epsilon: float = 1e-3,
        seed: int = 0,
        weight_decay: float = 0.0,
        vector_lr_ratio: float = 1.0,
        noise_device: str = "cpu",
    ) -> None:
        options = {"lr": lr, "weight_decay": weight_decay, "vector_lr_ratio": vector_lr_ratio}
        for name, value in options.items():
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")
        if not 0.0 < epsilon < math.inf:
            raise ValueError(f"epsilon must be a finite number > 0, got {epsilon!r}")
        super().__init__(params, options)
        self.estimator: Estimator = estimator or TwoPoint()
        self.subspace: Subspace = subspace or Full()
        self.matrix_map = matrix_map
        self.rule: Rule = rule or Sgd()
        self.epsilon, self.seed, self.noise_device = epsilon, seed, noise_device
        self.last_record: StepRecord | None = None
        self.param_groups[0]["progress"] = {"step": 0, "queries": 0, "memory": {}}
        self._check()
        warn_if_unresolved(self._sites(), epsilon)

    def _check(self) -> None:
        if not self.subspace.random and isinstance(self.estimator, AveragedBaseline):
            raise ValueError(
                "an averaged baseline needs Gaussian directions; coordinates go with TwoPoint or "
                "OneSided"
            )
        for site in self._sites():
            if not site.weight.is_floating_point():
                raise ValueError(
                    f"parameter {site.index} is {site.weight.dtype}; only real floating point is "
                    "supported"
                )
            self.subspace.block(site, 0)

    # -- what a run has come to -------------------------------------------------------------------

    @property
    def queries(self) -> int:
        """Forward calls made so far; one with a derivative counts once."""
        return int(self._progress["queries"])

    @property
    def steps(self) -> int:
        """Updates made so far."""
        return int(self._progress["step"])

    @property
    def _progress(self) -> dict[str, Any]:
        return cast(dict[str, Any], self.param_groups[0]["progress"])

    # -- a step -----------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one update.

        Args:
            closure: returns the loss, as a number or a tensor of one element.

        Returns:
            The loss, see the estimator.

        Raises:
            ValueError: no closure was given.
            NonFiniteLossError: a query gave NaN or infinity; nothing was changed.
        """
        if closure is None:
            raise ValueError("a zeroth-order step needs a closure that returns the loss")
        record = self.conclude(self.measure(self.plan(), closure))
        self.apply(record)
        return record.loss

    def plan(self) -> list[Query]:
        """Return the queries of the next step."""
        return self.estimator.queries(self._seeds())

    @torch.no_grad()
    def measure(self, queries: Sequence[Query], closure: Closure) -> list[Reading]:
        """Answer queries of the next step; weights and global generators end as they began.

        Any of them, in any order, in any process that holds the same weights.
        """
        return [self._measure(query, closure) for query in queries]

    def conclude(self, readings: Sequence[Reading]) -> StepRecord:
        """Return the record of the next step from the readings of `plan`, in its order.

        Raises:
            NonFiniteLossError: one of them is NaN or infinite.
        """
        for position, reading in enumerate(readings):
            if not math.isfinite(reading.loss):
                raise NonFiniteLossError(
                    f"query {position} of step {self.steps} gave the loss {reading.loss}. Nothing "
                    "was updated. A smaller epsilon or learning rate may help."
                )
        seeds = self._seeds()
        estimate = self.estimator.conclude(
            seeds,
            readings,
            epsilon=self.epsilon,
            scale=1 / len(seeds) if self.subspace.random else 1.0,
            memory=self._memory(),
        )
        return StepRecord(
            step=self.steps,
            loss=estimate.loss,
            coefficients=estimate.coefficients,
            lrs=tuple(float(group["lr"]) for group in self.param_groups),
            queries=len(readings),
            memory=estimate.memory,
        )

    @torch.no_grad()
    def apply(self, record: StepRecord) -> None:
        """Make the update of a record.

        Raises:
            ValueError: it is not the record of the next step, or of other parameter groups.
        """
        if record.step != self.steps or len(record.lrs) != len(self.param_groups):
            raise ValueError(
                f"expected the record of step {self.steps} with {len(self.param_groups)} learning "
                f"rates, got step {record.step} with {len(record.lrs)}; records are applied in "
                "order, from the weights the run began with"
            )
        for site in self._sites():
            self._update(site, record)
        # A new dictionary: `state_dict` hands out the old one.
        self.param_groups[0]["progress"] = {
            "step": record.step + 1,
            "queries": self.queries + record.queries,
            "memory": record.memory,
        }
        self.last_record = record

    # -- moving -----------------------------------------------------------------------------------

    def _sites(self) -> list[Site]:
        return list(build_sites(self.param_groups, self.seed, self.noise_device))

    def _seeds(self) -> list[int]:
        return self.subspace.seeds(self._sites(), self.steps, self.estimator.directions)

    def _memory(self) -> dict[str, Any]:
        """The estimator's memory; queries along directions of another subspace are forgotten."""
        memory = dict(self._progress["memory"])
        step = self.steps
        if step and self.subspace.epoch(step) != self.subspace.epoch(step - 1):
            memory.pop("history", None)
        return memory

    def _measure(self, query: Query, closure: Closure) -> Reading:
        sites, step = self._sites(), self.steps
        blocks = [self.subspace.block(site, step) for site in sites]
        with fixed_noise(mix(self.seed, NOISE, step), (site.weight.device for site in sites)):
            if not query.derivative:
                with displaced(lambda: displacement(query, blocks, self.epsilon)):
                    return Reading(loss=float(closure()))
            shadows = (site.shadow() for site in sites)
            along = (self.subspace.block(shadow, step) for shadow in shadows)
            return directional_derivative(closure, tangents(query, along))

    # -- updating ---------------------------------------------------------------------------------

    def _update(self, site: Site, record: StepRecord) -> None:
        block = self.subspace.block(site, record.step)
        is_matrix = len(block.shape) == 2
        lr = record.lrs[site.group_index]
        decay = lr * site.group["weight_decay"] if is_matrix else 0.0
        lr *= 1.0 if is_matrix else site.group["vector_lr_ratio"]
        pieces = self._ruled(site, block, record)
        if self.matrix_map is not None and is_matrix:
            pieces = slabs(self.matrix_map(assemble(pieces)))
        source = generator(self.seed, ROUNDING, record.step, site.index)
        for view, direction in block.lift(pieces):
            step = lr * direction
            if decay:
                step.add_(view, alpha=decay)
            subtract_(view, step, source)

    def _ruled(self, site: Site, block: Block, record: StepRecord) -> Iterator[Tensor]:
        """What the inner rule makes of the estimate, in slabs of the block's coordinates."""
        buffers = self._buffers(site, block, record.step)
        windows = {name: slabs(block.window(buffer)) for name, buffer in buffers.items()}
        for piece in block.combine(record.coefficients):
            parts = {name: next(parts) for name, parts in windows.items()}
            yield self.rule.update(piece, parts, block.visits)

    def _buffers(self, site: Site, block: Block, step: int) -> dict[str, Tensor]:
        state = self.state[site.parameter] if self.rule.buffers else {}
        for name in self.rule.buffers:
            if name not in state:
                state[name] = torch.zeros(
                    block.state_shape(), dtype=wide(site.weight.dtype), device=site.weight.device
                )
            elif step:
                state[name] = self.subspace.carry(site, step, name, state[name])
        return {name: state[name] for name in self.rule.buffers}

    # -- saving -----------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; buffers keep their precision, which torch would cast."""
        super().load_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for parameter, index in zip(group["params"], saved["params"], strict=True):
                for name, value in state_dict["state"].get(index, {}).items():
                    self.state[parameter][name] = value.detach().to(parameter.device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        """Include the composition, which torch would leave out of a copy."""
        own = ("estimator", "subspace", "matrix_map", "rule", "epsilon", "seed", "noise_device")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Undo `__getstate__`."""
        super().__setstate__({"last_record": None, **state})
