"""Configuration of the embedded flow-matching policy, registered with lerobot as ``vla_flow``."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig

from policies._configuration import EmbeddedConfig
from policies._flow_config import FlowConfig
from policies.flow import Prediction


@PreTrainedConfig.register_subclass("vla_flow")
@dataclass
class VLAFlowConfig(FlowConfig, EmbeddedConfig):
    """Sizes, parts and normalisation of a `VLAFlowPolicy`; its queries are meta-queries.

    The head has num_layers + 1 blocks: one for the tokens that enter the language model, one for
    each layer. It predicts actions, and is trained on four noises per observation: docs/policies.md
    shows what that is worth.
    """

    prediction: Prediction = "actions"
    noise_draws: int = 4
