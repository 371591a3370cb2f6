"""Pre- and post-processing pipelines of VLA-Adapter at full size."""

from __future__ import annotations

from lerobot.processor import make_default_pre_post_processors

from policies._prismatic import published_stats
from policies._processors import Pipelines, Stats
from policies.configuration_vla_adapter_full import VLAAdapterFullConfig


def make_vla_adapter_full_pre_post_processors(
    config: VLAAdapterFullConfig, dataset_stats: Stats | None = None
) -> Pipelines:
    """Build lerobot's standard pipelines: state and actions by their 1 % and 99 % quantiles.

    Args:
        config: features declared.
        dataset_stats: feature name -> statistic name -> array. None with head_path: those of the
            published checkpoint.
    """
    if dataset_stats is None and config.head_path:
        dataset_stats = published_stats(config.head_path)
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
