"""The update rules by name. A new algorithm is a rule (see `UpdateRule`) and a line here."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from vla_opt.optim._adamw import AdamWRule
from vla_opt.optim._base import UpdateRule
from vla_opt.optim._names import unknown_name
from vla_opt.optim.muon import MuonRule
from vla_opt.optim.pion import PionRule

_RULES: dict[str, UpdateRule] = {
    "adamw": AdamWRule(),
    "muon": MuonRule(),
    "pion": PionRule(),
}

ALGORITHMS: Mapping[str, UpdateRule] = MappingProxyType(_RULES)


def algorithm(name: str) -> UpdateRule:
    """The update rule called `name`.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name not in ALGORITHMS:
        raise unknown_name("optimizer", name, ALGORITHMS)
    return ALGORITHMS[name]


def check_options(name: str, options: Iterable[str]) -> None:
    """Raise ValueError if one of `options` is none of algorithm `name`'s."""
    for option in options:
        if option not in algorithm(name).defaults:
            raise unknown_name(f"option of {name}", option, algorithm(name).defaults)
