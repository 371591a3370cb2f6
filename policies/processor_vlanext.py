"""Pre- and post-processing pipelines of the full-size flow-matching policy."""

from __future__ import annotations

from lerobot.processor import make_default_pre_post_processors

from policies._processors import Pipelines, Stats
from policies.configuration_vlanext import VLANeXtConfig


def make_vlanext_pre_post_processors(
    config: VLANeXtConfig, dataset_stats: Stats | None = None
) -> Pipelines:
    """Build lerobot's standard pipelines: state standardised, actions by their bounds.

    Args:
        config: features declared.
        dataset_stats: feature name -> statistic name -> array.
    """
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
