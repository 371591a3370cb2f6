"""pi_0.5: everything public about it in one place."""

from policies._openpi import openpi_stats
from policies.configuration_vla_pi05 import VLAPi05Config
from policies.droid import ACTION_SPACES, DroidActionSpace, droid_features
from policies.modeling_vla_pi05 import VLAPi05Policy
from policies.processor_vla_pi05 import make_vla_pi05_pre_post_processors

__all__ = [
    "ACTION_SPACES",
    "DroidActionSpace",
    "VLAPi05Config",
    "VLAPi05Policy",
    "droid_features",
    "make_vla_pi05_pre_post_processors",
    "openpi_stats",
]
