"""Configuration of the VLA-Adapter policy, registered with lerobot as ``vla_adapter``."""

from __future__ import annotations

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig

from policies._configuration import EmbeddedConfig


@PreTrainedConfig.register_subclass("vla_adapter")
@dataclass
class VLAAdapterConfig(EmbeddedConfig):
    """Sizes, parts and normalisation of a `VLAAdapterPolicy`; its queries are ActionQueries."""
