"""The flow-matching policies, embedded and at full size: everything public in one place."""

from policies.configuration_vla_flow import VLAFlowConfig
from policies.configuration_vlanext import VLANeXtConfig
from policies.modeling_vla_flow import VLAFlowPolicy
from policies.modeling_vlanext import VLANeXtPolicy
from policies.processor_vla_flow import make_vla_flow_pre_post_processors
from policies.processor_vlanext import make_vlanext_pre_post_processors

__all__ = [
    "VLAFlowConfig",
    "VLAFlowPolicy",
    "VLANeXtConfig",
    "VLANeXtPolicy",
    "make_vla_flow_pre_post_processors",
    "make_vlanext_pre_post_processors",
]
