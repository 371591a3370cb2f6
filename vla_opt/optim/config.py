"""Everything about the optimizer that a configuration file can say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vla_opt.optim._algorithms import ALGORITHMS, algorithm, check_options
from vla_opt.optim._names import unknown_name
from vla_opt.optim._precision import StepOptions
from vla_opt.optim.mixed import MixedOptimizer, build_optimizer
from vla_opt.optim.presets import AUTO, ROLES, preset_rules, recognised_preset
from vla_opt.optim.routing import Rule, assign_parameters, routing_table


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An optimizer for a policy: its algorithm, its rates, and who gets which.

    Attributes:
        name: "pion" (the high-pass one, arXiv 2605.19282), "muon", "adamw", or another of
            `vla_opt.optim.ALGORITHMS`.
        lr: peak learning rate; one tuned for AdamW is a start for the others at update_scale 0.2.
        adamw_lr_ratio: rate of vectors, embeddings and output layers relative to lr.
        weight_decay: decoupled, multiplied by the learning rate.
        momentum: of Pion, Muon and their kin.
        nesterov: of Pion, Muon and their kin.
        betas: of AdamW and its kin.
        eps: of AdamW and its kin.
        promotion_steps: of Pion: more of them let more directions pass.
        suppression_steps: of Pion.
        update_scale: of Pion, Muon and their kin.
        options: further options of the algorithm `name`, such as {"retraction": "cayley"}.
        preset: routing rules, see `preset_rules`; "default" fits any model, "auto" takes the one
            that was made for a policy whose parameters have such names.
        roles: another algorithm for some roles of the preset, such as {"vision": "pion"}.
        frozen_roles: roles that are not trained; "excluded" too can be one.
        num_heads: per-head updates: everywhere with the preset "qwen3", in the action head with
            "vla_adapter".
        num_kv_heads: heads of key and value there.
        nonfinite: "raise", "skip" or "ignore" gradients with NaN or infinity, see `StepOptions`.
        low_precision: "master", "stochastic" or "nearest" for parameters of 16 bits, likewise.

    Raises:
        ValueError: an unknown optimizer, option, preset or role; the message names the nearest.
    """

    name: str = "pion"
    lr: float = 1e-3
    adamw_lr_ratio: float = 1.0
    weight_decay: float = 0.01
    momentum: float = 0.95
    nesterov: bool = True
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    promotion_steps: int = 1
    suppression_steps: int = 4
    update_scale: float = 0.2
    preset: str = AUTO
    roles: dict[str, str] = field(default_factory=dict)
    frozen_roles: tuple[str, ...] = ()
    num_heads: int | None = None
    num_kv_heads: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    nonfinite: str = "raise"
    low_precision: str = "master"

    def __post_init__(self) -> None:
        """Refuse names that do not exist before anything is built."""
        for name in (self.name, *self.roles.values()):
            algorithm(name)
        known = set(ROLES) if self.preset == AUTO else {rule.role for rule in self.rules()}
        check_options(self.name, self.options)
        StepOptions(**self._step_options())
        for role in (*self.roles, *self.frozen_roles):
            if role not in known:
                raise unknown_name("role", role, known)

    def rules(self, model: nn.Module | None = None) -> tuple[Rule, ...]:
        """The ordered routing rules.

        Args:
            model: what "auto" looks at; without it, "auto" is "default".
        """
        preset = self.preset
        if preset == AUTO:
            names = [] if model is None else [name for name, _ in model.named_parameters()]
            preset = recognised_preset(names)
        return preset_rules(
            preset,
            self.name,
            adamw_lr_ratio=self.adamw_lr_ratio,
            roles=self.roles,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
        )

    def build(self, model: nn.Module) -> MixedOptimizer:
        """The optimizer for the trainable parameters of `model`.

        Parameters of frozen_roles get requires_grad=False: they then cost no gradient either.
        """
        self.freeze(model)
        optimizer = build_optimizer(model, self.rules(model), lr=self.lr, options=self._options())
        return optimizer.configure(**self._step_options())

    def freeze(self, model: nn.Module) -> None:
        """Turn requires_grad off for the parameters of frozen_roles."""
        for route in assign_parameters(model, self.rules(model)) if self.frozen_roles else ():
            if route.rule.role in self.frozen_roles:
                route.parameter.requires_grad_(False)

    def table(self, model: nn.Module) -> str:
        """Which algorithm updates which parameter, as text."""
        return routing_table(model, self.rules(model))

    def _step_options(self) -> dict[str, Any]:
        return {"nonfinite": self.nonfinite, "low_precision": self.low_precision}

    def _options(self) -> Mapping[str, Mapping[str, Any]]:
        """Options by algorithm: of the fields above, those that it has."""
        shared = {key: getattr(self, key) for key in _SHARED}
        found = {}
        for name, rule in ALGORITHMS.items():
            chosen = {key: value for key, value in shared.items() if key in rule.defaults}
            if getattr(rule, "elementwise", False) and "eps" in rule.defaults:
                chosen["eps"] = self.eps  # elsewhere eps is another quantity
            found[name] = chosen
        found[self.name] |= self.options
        return found


_SHARED = (
    "momentum", "nesterov", "betas", "weight_decay", "update_scale",
    "promotion_steps", "suppression_steps",
)  # fmt: skip
