"""Vision-language-action policies as lerobot plug-ins.

Importing this package registers them with lerobot (stock tools:
``--policy.discover_packages_path=policies --policy.type=vla_adapter``). The classes of pi_0.5 are
in `policies.pi05`: they take seconds to import.
"""

from policies._pretrained import PretrainedFileError
from policies._registry import UnknownNameError
from policies.backbones import BACKBONES, Backbone, build_backbone, check_backbone
from policies.configuration_vla_pi05 import VLAPi05Config
from policies.droid import droid_features
from policies.language_models import LANGUAGE_MODELS
from policies.text import TEXT_ENCODERS, TextEncoder, TextFeatures, build_text_encoder
from policies.vla_adapter import (
    CheckpointMismatchError,
    VLAAdapterConfig,
    VLAAdapterFullConfig,
    VLAAdapterFullPolicy,
    VLAAdapterPolicy,
    import_vla_adapter,
    make_vla_adapter_full_pre_post_processors,
    make_vla_adapter_pre_post_processors,
)
from policies.vlanext import (
    VLAFlowConfig,
    VLAFlowPolicy,
    VLANeXtConfig,
    VLANeXtPolicy,
    make_vla_flow_pre_post_processors,
    make_vlanext_pre_post_processors,
)

__all__ = [
    "BACKBONES",
    "LANGUAGE_MODELS",
    "TEXT_ENCODERS",
    "Backbone",
    "CheckpointMismatchError",
    "PretrainedFileError",
    "TextEncoder",
    "TextFeatures",
    "UnknownNameError",
    "VLAAdapterConfig",
    "VLAAdapterFullConfig",
    "VLAAdapterFullPolicy",
    "VLAAdapterPolicy",
    "VLAFlowConfig",
    "VLAFlowPolicy",
    "VLANeXtConfig",
    "VLANeXtPolicy",
    "VLAPi05Config",
    "build_backbone",
    "build_text_encoder",
    "check_backbone",
    "droid_features",
    "import_vla_adapter",
    "make_vla_adapter_full_pre_post_processors",
    "make_vla_adapter_pre_post_processors",
    "make_vla_flow_pre_post_processors",
    "make_vlanext_pre_post_processors",
]
