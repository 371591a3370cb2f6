"""One lerobot optimizer type for each algorithm that lerobot does not have."""

import inspect
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

import torch
from lerobot.optim.optimizers import OptimizerConfig as LerobotOptimizerConfig
from torch import Tensor, nn

from vla_opt.optim import ALGORITHMS, MixedOptimizer, OptimizerConfig

logger = logging.getLogger(__name__)

type Named = list[tuple[str, Tensor]]


@dataclass
class VlaOptOptimizerConfig(LerobotOptimizerConfig):  # type: ignore[misc]
    """What `vla_opt.optim.OptimizerConfig` says, in the form that lerobot reads.

    Attributes:
        lr: see there, as all that follow.
        weight_decay: decoupled.
        grad_clip_norm: lerobot clips the norm of all gradients to this; 0 for no clipping.
        adamw_lr_ratio: rate of vectors, embeddings and output layers relative to lr.
        momentum: of the averaged gradient.
        nesterov: look one step ahead along it.
        betas: of AdamW.
        eps: of AdamW.
        promotion_steps: of Pion.
        suppression_steps: of Pion.
        update_scale: of the matrix algorithms.
        preset: routing by parameter names; "default" fits any model, "auto" looks at the names.
        roles: another algorithm for some roles of the preset.
        frozen_roles: roles that are not trained.
        num_heads: per-head updates for the preset "qwen3".
        num_kv_heads: heads of key and value there.
        options: further options of the algorithm.
        nonfinite: "raise", "skip" or "ignore".
        low_precision: "master", "stochastic" or "nearest".
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    grad_clip_norm: float = 1.0
    adamw_lr_ratio: float = 1.0
    momentum: float = 0.95
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    promotion_steps: int = 1
    suppression_steps: int = 4
    update_scale: float = 0.2
    preset: str = "auto"
    roles: dict[str, str] = field(default_factory=dict)
    frozen_roles: tuple[str, ...] = ()
    num_heads: int | None = None
    num_kv_heads: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    nonfinite: str = "raise"
    low_precision: str = "master"

    def __post_init__(self) -> None:
        """Refuse unknown names before data and policy are loaded."""
        try:
            self.config()
        except ValueError as error:
            logger.error("%s", error)  # draccus shows nothing of what a dataclass says
            raise

    def config(self) -> OptimizerConfig:
        """The configuration that `build` uses."""
        known = [f.name for f in fields(OptimizerConfig) if f.name != "name"]
        return OptimizerConfig(name=self.type, **{key: getattr(self, key) for key in known})

    def build(self, params: Any) -> torch.optim.Optimizer:
        """The optimizer for what lerobot hands over.

        Args:
            params: `policy.parameters()`, whose names are looked up in the policy; a mapping or
                pairs with names; or parameters and groups without names, which are then routed by
                their number of dimensions alone, with a warning.
        """
        found = named_parameters(params)
        if found is None:
            return self._without_names(params)
        logger.info("who updates what:\n%s", self.config().table(_Holder(found)))
        return self.config().build(_Holder(found))

    def _without_names(self, params: Any) -> MixedOptimizer:
        groups = [g if isinstance(g, Mapping) else {"params": [g]} for g in params]
        pairs = [
            (f"group{i}.parameter{j}", parameter)
            for i, group in enumerate(groups)
            for j, parameter in enumerate(group["params"])
        ]
        matrices = sum(p.ndim > 1 for _, p in pairs)
        logger.warning(
            "the policy hands over %d parameters without names. Routing needs them: all %d matrices"
            " go to %s, embeddings and output layers too, and learning rates of the policy's own "
            "groups are not used. With --use_policy_training_preset=false lerobot hands over "
            "policy.parameters(), whose names are found.",
            len(pairs), matrices, self.type,
        )  # fmt: skip
        return self.config().build(_Holder(pairs))


class _Holder(nn.Module):
    """Parameters under names that may hold dots, for code that asks a module for them."""

    def __init__(self, pairs: Named) -> None:
        super().__init__()
        self.pairs = pairs

    def named_parameters(self, *_: Any, **__: Any) -> Any:
        return iter(self.pairs)


def named_parameters(params: Any) -> Named | None:
    """The parameters with their names, or None where names cannot be had.

    `module.parameters()` yields no names, but a generator that has not begun still holds the
    module it belongs to.

    >>> [name for name, _ in named_parameters(nn.Linear(2, 2).parameters())]
    ['weight', 'bias']
    """
    if isinstance(params, nn.Module):
        return list(params.named_parameters())
    if isinstance(params, Mapping):
        flat = all(isinstance(value, Tensor) for value in params.values())
        return list(params.items()) if flat else None
    if inspect.isgenerator(params):
        if inspect.getgeneratorstate(params) != inspect.GEN_CREATED:
            return None
        owner = inspect.getgeneratorlocals(params).get("self")
        return list(owner.named_parameters()) if isinstance(owner, nn.Module) else None
    return _pairs(params)


def _pairs(params: Iterable[Any]) -> Named | None:
    if not isinstance(params, (list, tuple)):
        return None
    if all(isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str) for p in params):
        return list(params)
    groups = [p for p in params if isinstance(p, Mapping) and "param_names" in p]
    if len(groups) != len(params):
        return None
    return [
        pair
        for group in groups
        for pair in zip(group["param_names"], list(group["params"]), strict=True)
    ]


def _register() -> None:
    taken = LerobotOptimizerConfig.get_known_choices()
    for name in ALGORITHMS:
        if name not in taken:
            words = "".join(word.capitalize() for word in name.split("_"))
            kind = make_dataclass(f"{words}Config", [], bases=(VlaOptOptimizerConfig,))
            kind.__module__ = __name__
            globals()[kind.__name__] = kind  # where pickle looks for it
            LerobotOptimizerConfig.register_subclass(name)(kind)


_register()
