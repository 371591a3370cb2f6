"""Data: LeRobotDataset v3 on disk, a memory-mapped frame cache for training, exact statistics.

    episodes -> write_dataset -> LeRobotDataset -> build_cache -> FrameCache
    FrameCache -> ChunkDataset -> ChunkLoader -> to_policy_batch -> policy

The data set is the thing to keep and to share: stock lerobot opens it. The cache is derived from
it, holds the decoded frames, and is built again whenever the data set changes or the cache is
damaged. Features of a frozen encoder are a second cache on top: `vla_opt.features`.
"""

from vla_opt._cache import FrameCache
from vla_opt._cache_build import build_cache
from vla_opt._chunks import Batch, ChunkDataset, images_to_float, to_policy_batch
from vla_opt._dataset_stats import StatsReport, check_stats, fix_stats
from vla_opt._episode import Episode
from vla_opt._lerobot_read import DatasetFiles
from vla_opt._lerobot_write import write_dataset
from vla_opt._loader import ChunkLoader, epoch_order
from vla_opt._stats import QUANTILES, FeatureStats, Stats, exact_stats
from vla_opt.errors import DataError

__all__ = [
    "QUANTILES",
    "Batch",
    "ChunkDataset",
    "ChunkLoader",
    "DataError",
    "DatasetFiles",
    "Episode",
    "FeatureStats",
    "FrameCache",
    "Stats",
    "StatsReport",
    "build_cache",
    "check_stats",
    "epoch_order",
    "exact_stats",
    "fix_stats",
    "images_to_float",
    "to_policy_batch",
    "write_dataset",
]
