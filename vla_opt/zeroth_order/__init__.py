"""Optimization by forward calls alone.

    optimizer = mezo(model.parameters(), lr=1e-6)
    loss = optimizer.step(lambda: loss_of(model, batch))  # no backward pass

A `ZerothOrder` optimizer is composed of an estimator (what is queried), a subspace (along what), a
map of singular values and an inner rule. The published methods are presets. Torch and
`vla_opt.spectral` are all it needs.
"""

from vla_opt.zeroth_order.estimators import (
    AveragedBaseline,
    Estimator,
    ForwardGradient,
    OneSided,
    TwoPoint,
)
from vla_opt.zeroth_order.maps import HighPass, Map, NewtonSchulz
from vla_opt.zeroth_order.optimizer import ZerothOrder
from vla_opt.zeroth_order.presets import (
    ar1_zo,
    bayesian_subspace,
    coordinate_wise,
    forward_gradient,
    mezo,
    subspace_mezo,
    subspace_newton,
    zo_high_pass,
    zo_muon,
    zoar,
)
from vla_opt.zeroth_order.records import NonFiniteLossError, Query, Reading, StepRecord
from vla_opt.zeroth_order.rules import Adam, Momentum, Rule, Sgd
from vla_opt.zeroth_order.subspace_models import BayesianSubspace, SubspaceNewton
from vla_opt.zeroth_order.subspaces import Coordinates, Full, LeftQR, LoraAtoms, Subspace

__all__ = [
    "Adam",
    "AveragedBaseline",
    "BayesianSubspace",
    "Coordinates",
    "Estimator",
    "ForwardGradient",
    "Full",
    "HighPass",
    "LeftQR",
    "LoraAtoms",
    "Map",
    "Momentum",
    "NewtonSchulz",
    "NonFiniteLossError",
    "OneSided",
    "Query",
    "Reading",
    "Rule",
    "Sgd",
    "StepRecord",
    "Subspace",
    "SubspaceNewton",
    "TwoPoint",
    "ZerothOrder",
    "ar1_zo",
    "bayesian_subspace",
    "coordinate_wise",
    "forward_gradient",
    "mezo",
    "subspace_mezo",
    "subspace_newton",
    "zo_high_pass",
    "zo_muon",
    "zoar",
]
