"""VLA-Adapter, embedded and at full size: everything public about it in one place."""

from policies.configuration_vla_adapter import VLAAdapterConfig
from policies.configuration_vla_adapter_full import VLAAdapterFullConfig
from policies.modeling_vla_adapter import CheckpointMismatchError, VLAAdapterPolicy
from policies.modeling_vla_adapter_full import VLAAdapterFullPolicy
from policies.processor_vla_adapter import make_vla_adapter_pre_post_processors
from policies.processor_vla_adapter_full import make_vla_adapter_full_pre_post_processors
from policies.published import import_vla_adapter

__all__ = [
    "CheckpointMismatchError",
    "VLAAdapterConfig",
    "VLAAdapterFullConfig",
    "VLAAdapterFullPolicy",
    "VLAAdapterPolicy",
    "import_vla_adapter",
    "make_vla_adapter_full_pre_post_processors",
    "make_vla_adapter_pre_post_processors",
]
