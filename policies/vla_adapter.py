"""VLA-Adapter: everything public about it in one place."""

from policies.configuration_vla_adapter import VLAAdapterConfig
from policies.modeling_vla_adapter import CheckpointMismatchError, VLAAdapterPolicy
from policies.processor_vla_adapter import make_vla_adapter_pre_post_processors

__all__ = [
    "CheckpointMismatchError",
    "VLAAdapterConfig",
    "VLAAdapterPolicy",
    "make_vla_adapter_pre_post_processors",
]
