"""Pre- and post-processing pipelines shared by the policies on frozen encoders."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.configs import FeatureType
from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    make_default_pre_post_processors,
)

from policies._configuration import EmbeddedConfig

Stats = dict[str, dict[str, Any]]
Pipelines = tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]


def embedded_pre_post_processors(
    config: EmbeddedConfig, dataset_stats: Stats | None = None
) -> Pipelines:
    """Build lerobot's standard pipelines, with the standard deviations of the state floored.

    Args:
        config: features declared.
        dataset_stats: feature name -> statistic name -> array; kept inside the pipelines and
            saved with them.

    Returns:
        the pre-processor (batch to device, normalise) and the post-processor (unnormalise, to CPU).
    """
    stats = None if dataset_stats is None else floor_state_std(config, dataset_stats)
    return make_default_pre_post_processors(config, stats, normalizer_device=config.device)


def floor_state_std(config: EmbeddedConfig, stats: Stats) -> Stats:
    """Return ``stats`` with every standard deviation of a state at least `state_std_floor`."""
    floored = dict(stats)
    for key, feature in (config.input_features or {}).items():
        if feature.type is FeatureType.STATE and "std" in floored.get(key, {}):
            std = torch.as_tensor(floored[key]["std"]).clamp(min=config.state_std_floor)
            floored[key] = {**floored[key], "std": std}
    return floored
