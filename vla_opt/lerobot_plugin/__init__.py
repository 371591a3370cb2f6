"""The optimizers of `vla_opt.optim` under stock lerobot: ``--optimizer.type=pion``.

    lerobot-train --optimizer.discover_packages_path=vla_opt.lerobot_plugin \
        --use_policy_training_preset=false --optimizer.type=pion \
        --scheduler.type=vla_opt --scheduler.name=cosine ...

Importing this package registers them with lerobot. The first option is not needed where the
distribution in ``plugins/lerobot_policy_vla_opt`` is installed: lerobot imports that by its name.
"""

from vla_opt.lerobot_plugin.optimizers import VlaOptOptimizerConfig, named_parameters
from vla_opt.lerobot_plugin.schedulers import VlaOptSchedulerConfig
from vla_opt.lerobot_plugin.usage import ignored_options, warn_of_ignored_options

__all__ = [
    "VlaOptOptimizerConfig",
    "VlaOptSchedulerConfig",
    "ignored_options",
    "named_parameters",
    "warn_of_ignored_options",
]

warn_of_ignored_options()
