"""Vision-language-action policies as lerobot plug-ins.

Importing this package registers them with lerobot (stock tools:
``--policy.discover_packages_path=policies --policy.type=vla_adapter``). That takes their
configurations alone; the policies themselves are imported when they are asked for, since with them
comes every policy of lerobot, which takes many seconds. `register_all` is for who cannot wait: it
adds pi_0.5, whose configuration is derived from lerobot's.
"""

from importlib import import_module
from typing import Any

import policies.configuration_vla_adapter
import policies.configuration_vla_adapter_full
import policies.configuration_vla_flow
import policies.configuration_vlanext  # noqa: F401 - all four register themselves

_HOMES = {
    "policies._pretrained": ("PretrainedFileError",),
    "policies._registry": ("UnknownNameError",),
    "policies.backbones": ("BACKBONES", "Backbone", "build_backbone", "check_backbone"),
    "policies.configuration_vla_pi05": ("VLAPi05Config",),
    "policies.droid": ("droid_features",),
    "policies.language_models": ("LANGUAGE_MODELS",),
    "policies.text": ("TEXT_ENCODERS", "TextEncoder", "TextFeatures", "build_text_encoder"),
    "policies.vla_adapter": (
        "CheckpointMismatchError",
        "VLAAdapterConfig",
        "VLAAdapterFullConfig",
        "VLAAdapterFullPolicy",
        "VLAAdapterPolicy",
        "import_vla_adapter",
        "make_vla_adapter_full_pre_post_processors",
        "make_vla_adapter_pre_post_processors",
    ),
    "policies.vlanext": (
        "VLAFlowConfig",
        "VLAFlowPolicy",
        "VLANeXtConfig",
        "VLANeXtPolicy",
        "make_vla_flow_pre_post_processors",
        "make_vlanext_pre_post_processors",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["register_all", *_HOME]


def __getattr__(name: str) -> Any:
    """Import what is asked for from where it is."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def register_all() -> None:
    """Register pi_0.5 as well, and with it all policies of lerobot."""
    import_module("policies.configuration_vla_pi05")
