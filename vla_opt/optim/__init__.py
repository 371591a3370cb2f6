"""Optimizers that act on the singular values of a momentum, and who gets which.

    from vla_opt.optim import Pion
    optimizer = Pion(matrices, lr=1e-3)                      # drop-in, matrices only

    from vla_opt.optim import OptimizerConfig
    optimizer = OptimizerConfig(name="pion").build(policy)   # with AdamW for all the rest

Two papers of 2026 are called Pion. `Pion` is the high-pass one (arXiv 2605.19282); the
spectrum-preserving one (arXiv 2605.12492, "PionOET") is a different optimizer.
Needs torch and nothing else.
"""

from vla_opt.optim._algorithms import ALGORITHMS
from vla_opt.optim._base import NonFiniteGradientError, Slot, UpdateRule
from vla_opt.optim._precision import StepOptions
from vla_opt.optim.config import OptimizerConfig
from vla_opt.optim.freon import Freon
from vla_opt.optim.kaon import Kaon
from vla_opt.optim.low_rank_muon import LowRankMuon
from vla_opt.optim.mimuon import MiMuon
from vla_opt.optim.mixed import MixedOptimizer, build_optimizer
from vla_opt.optim.muon import Muon
from vla_opt.optim.normuon import NorMuon
from vla_opt.optim.pion import Pion
from vla_opt.optim.pion_oet import PionOET
from vla_opt.optim.presets import PRESETS, preset_rules
from vla_opt.optim.published import published_options
from vla_opt.optim.regularized_muon import RegularizedMuon
from vla_opt.optim.routing import Route, Rule, assign_parameters, routing_table
from vla_opt.optim.schedule_free import ScheduleFreeAdamW, SFNorMuon
from vla_opt.optim.symmetry import SymmetryCompatible

__all__ = [
    "ALGORITHMS",
    "PRESETS",
    "Freon",
    "Kaon",
    "LowRankMuon",
    "MiMuon",
    "MixedOptimizer",
    "Muon",
    "NonFiniteGradientError",
    "NorMuon",
    "OptimizerConfig",
    "Pion",
    "PionOET",
    "RegularizedMuon",
    "Route",
    "Rule",
    "SFNorMuon",
    "ScheduleFreeAdamW",
    "Slot",
    "StepOptions",
    "SymmetryCompatible",
    "UpdateRule",
    "assign_parameters",
    "build_optimizer",
    "preset_rules",
    "published_options",
    "routing_table",
]
