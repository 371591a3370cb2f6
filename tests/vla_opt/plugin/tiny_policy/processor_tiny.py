from typing import Any

from lerobot.processor import make_default_pre_post_processors


def make_tiny_pre_post_processors(config: Any, dataset_stats: Any = None) -> Any:
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
