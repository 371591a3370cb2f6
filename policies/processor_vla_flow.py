"""Pre- and post-processing pipelines of the embedded flow-matching policy."""

from __future__ import annotations

from policies._processors import Pipelines, Stats, embedded_pre_post_processors
from policies.configuration_vla_flow import VLAFlowConfig


def make_vla_flow_pre_post_processors(
    config: VLAFlowConfig, dataset_stats: Stats | None = None
) -> Pipelines:
    """See `policies._processors.embedded_pre_post_processors`; lerobot finds it by this name."""
    return embedded_pre_post_processors(config, dataset_stats)
