"""Pre- and post-processing pipelines of the VLA-Adapter policy."""

from __future__ import annotations

from policies._processors import Pipelines, Stats, embedded_pre_post_processors
from policies.configuration_vla_adapter import VLAAdapterConfig


def make_vla_adapter_pre_post_processors(
    config: VLAAdapterConfig, dataset_stats: Stats | None = None
) -> Pipelines:
    """See `policies._processors.embedded_pre_post_processors`; lerobot finds it by this name."""
    return embedded_pre_post_processors(config, dataset_stats)
