"""One torch optimizer whose parameter groups use different algorithms."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vla_opt.optim._algorithms import ALGORITHMS, algorithm, check_options
from vla_opt.optim._base import Group, RuleOptimizer, UpdateRule
from vla_opt.optim.routing import Rule, assign_parameters


class MixedOptimizer(RuleOptimizer):
    """An optimizer whose groups say which algorithm updates them.

    Each group has the keys "params", "algorithm" ("adamw", "muon" or "pion") and any option of
    that algorithm; what it leaves out gets the algorithm's default. A group may carry "name" and
    "role" for logs. Built from a model and rules by `build_optimizer`.

    Args:
        groups: group dicts; "params" holds parameters or (name, parameter) pairs.
        lr: learning rate of groups that name none.

    Raises:
        ValueError: unknown algorithm or option (the nearest is named), or an option that does
            not fit its parameters.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr})

    def add_param_group(self, param_group: Group) -> None:
        """Add a group with its "algorithm"; options it leaves out get that algorithm's default."""
        if "algorithm" not in param_group:
            raise ValueError(f"group without 'algorithm'; choose {', '.join(sorted(ALGORITHMS))}")
        defaults = algorithm(param_group["algorithm"]).defaults
        check_options(param_group["algorithm"], set(param_group) - _GROUP_KEYS)
        super().add_param_group({**defaults, **param_group})

    def _rule(self, group: Group) -> UpdateRule:
        return algorithm(group["algorithm"])


# lr schedulers add initial_lr; param_names and the rest belong to the group, not the algorithm.
_GROUP_KEYS = {"params", "param_names", "lr", "initial_lr", "algorithm", "name", "role"}


def build_optimizer(
    model: nn.Module | Iterable[tuple[str, Tensor]],
    rules: Sequence[Rule],
    *,
    lr: float,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> MixedOptimizer:
    """One optimizer for all trainable parameters of a model, routed by rules.

    Args:
        model: a module, or its (name, parameter) pairs; those without requires_grad are left out.
        rules: ordered; the first that matches a parameter decides, see `Rule`.
        lr: learning rate, multiplied by the lr_ratio of each rule.
        options: per algorithm, options for all its groups; those of a rule come before them.

    Raises:
        ValueError: a parameter matches no rule, or an algorithm or option is unknown.

    >>> from vla_opt.optim import preset_rules
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    >>> optimizer = build_optimizer(model, preset_rules("default", "pion"), lr=1e-3)
    >>> [(g["name"], len(g["params"])) for g in optimizer.param_groups]
    [('excluded/adamw', 2), ('matrix/pion', 2)]
    """
    shared = options or {}
    for name, given in shared.items():
        check_options(name, given)
    groups: dict[str, Group] = {}
    for route in assign_parameters(model, rules):
        group = _group(route.rule, lr, shared)
        member = groups.setdefault(repr(sorted(group.items(), key=str)), group)
        member["params"].append((route.name, route.parameter))
    if not groups:
        raise ValueError("the model has no parameter that requires a gradient: nothing to optimize")
    _number_equal_names(list(groups.values()))
    return MixedOptimizer(groups.values(), lr)


def _group(rule: Rule, lr: float, shared: Mapping[str, Mapping[str, Any]]) -> Group:
    return {
        **shared.get(rule.algorithm, {}),
        **rule.options,
        "params": [],
        "algorithm": rule.algorithm,
        "role": rule.role,
        "name": f"{rule.role}/{rule.algorithm}" if rule.role else rule.algorithm,
        "lr": lr * rule.lr_ratio,
    }


def _number_equal_names(groups: Sequence[Group]) -> None:
    seen: Counter[str] = Counter()
    for group in groups:
        seen[group["name"]] += 1
        if seen[group["name"]] > 1:
            group["name"] += f"#{seen[group['name']]}"
