"""Fine-tuning a policy by forward calls alone, and rebuilding its weights from the log.

The optimizers are in `vla_opt.zeroth_order`, which knows neither policies nor data nor Ray; this
package brings them together.
"""

from vla_opt.zo_training.config import (
    AdapterConfig,
    EpisodesConfig,
    MethodConfig,
    ReplayConfig,
    ZOTrainConfig,
)
from vla_opt.zo_training.replay import ReplaySummary, replay
from vla_opt.zo_training.run import ZOSummary, zo_train

__all__ = [
    "AdapterConfig",
    "EpisodesConfig",
    "MethodConfig",
    "ReplayConfig",
    "ReplaySummary",
    "ZOSummary",
    "ZOTrainConfig",
    "replay",
    "zo_train",
]
