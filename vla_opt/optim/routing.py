"""Which algorithm updates which parameter: ordered regular expressions, the first match decides."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Rule:
    """Parameters whose name and number of dimensions match go to one algorithm.

    Attributes:
        pattern: regular expression, searched anywhere in the parameter's full name.
        algorithm: "adamw", "muon" or "pion".
        role: a word for logs and tables, such as "action".
        options: options of the algorithm for these parameters, such as num_heads.
        min_ndim: parameters with fewer dimensions do not match.
        max_ndim: parameters with more dimensions do not match; None for no limit.
        lr_ratio: their learning rate relative to the optimizer's.

    Raises:
        ValueError: the pattern is no regular expression, or lr_ratio is negative.
    """

    pattern: str
    algorithm: str
    role: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    min_ndim: int = field(default=0, kw_only=True)
    max_ndim: int | None = field(default=None, kw_only=True)
    lr_ratio: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what could never match."""
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"rule pattern {self.pattern!r} is not valid: {error}") from error
        if not self.lr_ratio >= 0.0:
            raise ValueError(f"lr_ratio must be >= 0, got {self.lr_ratio!r}")

    def matches(self, name: str, ndim: int) -> bool:
        """Whether a parameter of this name and number of dimensions falls under the rule."""
        if ndim < self.min_ndim or (self.max_ndim is not None and ndim > self.max_ndim):
            return False
        return re.search(self.pattern, name) is not None


@dataclass(frozen=True, kw_only=True)
class Route:
    """A parameter and the rule it falls under."""

    name: str
    parameter: Tensor
    rule: Rule
    rule_index: int


def assign_parameters(
    model: nn.Module | Iterable[tuple[str, Tensor]], rules: Sequence[Rule]
) -> list[Route]:
    """Route every trainable parameter, in the order of the rules, then of the model.

    Args:
        model: a module (tied parameters count once, under their first name), or pairs.
        rules: ordered; put exceptions first.

    Raises:
        ValueError: a parameter matches no rule, or is given twice.
    """
    pairs = model.named_parameters() if isinstance(model, nn.Module) else model
    trainable = [(name, p) for name, p in pairs if p.requires_grad]
    _check_unique(trainable)
    routes = [_route(name, parameter, rules) for name, parameter in trainable]
    return sorted(routes, key=lambda route: route.rule_index)


def _check_unique(pairs: Sequence[tuple[str, Tensor]]) -> None:
    names: set[str] = set()
    owners: dict[int, str] = {}
    for name, parameter in pairs:
        if name in names:
            raise ValueError(f"two parameters are called {name!r}: names must be unique")
        if id(parameter) in owners:
            raise ValueError(
                f"{name!r} and {owners[id(parameter)]!r} are the same parameter: give it once "
                "(model.named_parameters() leaves tied parameters out)"
            )
        names.add(name)
        owners[id(parameter)] = name


def _route(name: str, parameter: Tensor, rules: Sequence[Rule]) -> Route:
    for index, rule in enumerate(rules):
        if rule.matches(name, parameter.ndim):
            return Route(name=name, parameter=parameter, rule=rule, rule_index=index)
    raise ValueError(
        f"parameter {name!r} with shape {tuple(parameter.shape)} matches none of the "
        f"{len(rules)} rules: add one, for example Rule('.*', 'adamw') at the end"
    )


def routing_table(model: nn.Module | Iterable[tuple[str, Tensor]], rules: Sequence[Rule]) -> str:
    """Who updates what, as text: one line for parameters alike but for the numbers in their name.

    >>> print(routing_table(nn.Linear(4, 2), [Rule("bias", "adamw"), Rule(".*", "pion", "action")]))
    algorithm  role    lr x  parameter  shape  count  elements
    adamw      -       1     bias       2      1      2
    pion       action  1     weight     2x4    1      8
    """
    lines: dict[tuple[str, ...], list[int]] = {}
    for route in assign_parameters(model, rules):
        rule, shape = route.rule, "x".join(map(str, route.parameter.shape)) or "scalar"
        pattern = re.sub(r"\b\d+\b", "*", route.name)
        key = (rule.algorithm, rule.role or "-", f"{rule.lr_ratio:g}", pattern, shape)
        lines.setdefault(key, []).append(route.parameter.numel())
    head = ("algorithm", "role", "lr x", "parameter", "shape", "count", "elements")
    rows = [head, *((*key, str(len(n)), f"{sum(n):,}") for key, n in lines.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
