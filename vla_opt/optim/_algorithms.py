"""The update rules by name. A new algorithm is a rule (see `UpdateRule`) and a line here."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from vla_opt.optim._adamw import AdamWRule
from vla_opt.optim._base import UpdateRule
from vla_opt.optim._names import unknown_name
from vla_opt.optim.freon import FreonRule
from vla_opt.optim.kaon import kaon_rule
from vla_opt.optim.low_rank_muon import LowRankMuonRule
from vla_opt.optim.mimuon import MiMuonRule
from vla_opt.optim.muon import MuonRule
from vla_opt.optim.normuon import NorMuonRule
from vla_opt.optim.pion import PionRule
from vla_opt.optim.pion_oet import PionOETRule
from vla_opt.optim.regularized_muon import RegularizedMuonRule
from vla_opt.optim.schedule_free import ScheduleFreeAdamWRule, SFNorMuonRule
from vla_opt.optim.symmetry import SymmetryRule

_RULES: dict[str, UpdateRule] = {
    "adamw": AdamWRule(),
    "freon": FreonRule(),
    "kaon": kaon_rule(),
    "low_rank_muon": LowRankMuonRule(),
    "mimuon": MiMuonRule(),
    "muon": MuonRule(),
    "normuon": NorMuonRule(),
    "pion": PionRule(),
    "pion_oet": PionOETRule(),
    "regularized_muon": RegularizedMuonRule(),
    "schedule_free_adamw": ScheduleFreeAdamWRule(),
    "sf_normuon": SFNorMuonRule(),
    "symmetry": SymmetryRule(),
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
