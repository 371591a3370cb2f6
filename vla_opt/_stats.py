"""Exact statistics of a dataset, in the layout of LeRobot's ``meta/stats.json``.

lerobot 0.6.1 writes, as the quantiles of a dataset, count-weighted means of the quantiles of its
episodes. That is not a quantile: episodes that visit different ranges pull q01 and q99 inwards and
several times the intended 2 % of the samples fall outside. Here every row counts once.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES: Mapping[str, float] = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
"""Names and levels of the quantiles that LeRobot stores."""

FeatureStats = dict[
    str, NDArray[Any]
]  # "mean" "std" "min" "max" "q01" ... -> (D,); "count" -> (1,)
Stats = dict[str, FeatureStats]  # feature name -> its statistics


def exact_stats(values: NDArray[Any]) -> FeatureStats:
    """Statistics over the rows of a column; the standard deviation is the population's.

    Args:
        values: (N, D), or (N,) for a scalar feature, which counts as D = 1.

    Returns:
        mean, std, min, max and the quantiles of `QUANTILES`, each (D,) float64; count, (1,) int64.

    Raises:
        ValueError: There are no rows, or a value is not finite.

    Example:
        >>> stats = exact_stats(np.arange(101))
        >>> float(stats["q01"][0]), float(stats["q99"][0]), int(stats["count"][0])
        (1.0, 99.0, 101)
    """
    if len(values) == 0:
        raise ValueError("expected at least one row to compute statistics from, got none")
    rows = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise ValueError(f"row {bad} holds a value that is not finite: {rows[bad].tolist()}")
    levels = np.quantile(rows, list(QUANTILES.values()), axis=0)
    return {
        "mean": rows.mean(axis=0),
        "std": rows.std(axis=0),
        "min": rows.min(axis=0),
        "max": rows.max(axis=0),
        "count": np.array([len(rows)], dtype=np.int64),
        **dict(zip(QUANTILES, levels, strict=True)),
    }


class PixelHistogram:
    """Exact statistics of 8-bit RGB images, one channel at a time, from 256 counts per channel."""

    def __init__(self) -> None:
        self.counts = np.zeros((3, 256), dtype=np.int64)
        self.frames = 0

    def add(self, frames: NDArray[np.uint8]) -> None:
        """Count the pixels of `frames`, (T, H, W, 3)."""
        from PIL import Image  # its histogram is 20 times faster than numpy.bincount on uint8

        length, height, width, _ = frames.shape
        image = Image.fromarray(np.ascontiguousarray(frames).reshape(length * height, width, 3))
        self.counts += np.array(image.histogram(), dtype=np.int64).reshape(3, 256)
        self.frames += length

    def merge(self, other: "PixelHistogram") -> None:
        """Add the counts of another histogram."""
        self.counts += other.counts
        self.frames += other.frames

    def stats(self) -> FeatureStats:
        """Statistics per channel in [0, 1], each (3, 1, 1); count is the number of frames.

        Raises:
            ValueError: No frame has been added.
        """
        if self.frames == 0:
            raise ValueError("expected at least one image to compute statistics from, got none")
        levels = np.arange(256, dtype=np.float64) / 255.0
        total = self.counts.sum(axis=1)  # (3,)
        mean = self.counts @ levels / total
        variance = self.counts @ levels**2 / total - mean**2
        present = self.counts > 0
        channels = {
            "mean": mean,
            "std": np.sqrt(np.maximum(variance, 0.0)),
            "min": levels[present.argmax(axis=1)],
            "max": levels[255 - present[:, ::-1].argmax(axis=1)],
            **{name: self._quantile(q) / 255.0 for name, q in QUANTILES.items()},
        }
        stats: FeatureStats = {name: value.reshape(3, 1, 1) for name, value in channels.items()}
        stats["count"] = np.array([self.frames], dtype=np.int64)
        return stats

    def _quantile(self, q: float) -> NDArray[np.float64]:
        """`np.quantile(pixels, q)` with linear interpolation, per channel."""
        cumulative = self.counts.cumsum(axis=1)
        position = q * (cumulative[:, -1] - 1)
        below = np.floor(position)
        pairs = zip(cumulative, below, np.ceil(position), strict=True)
        low, high = np.array(
            [
                (np.searchsorted(c, b, side="right"), np.searchsorted(c, a, side="right"))
                for c, b, a in pairs
            ],
            dtype=np.float64,
        ).T
        return np.asarray(low + (position - below) * (high - low))


def stats_to_json(stats: Mapping[str, FeatureStats]) -> dict[str, dict[str, Any]]:
    """The statistics as nested lists, as they stand in ``meta/stats.json``."""
    return {
        feature: {name: np.asarray(value).tolist() for name, value in values.items()}
        for feature, values in stats.items()
    }


def stats_from_json(data: Mapping[str, Mapping[str, Any]]) -> Stats:
    """The inverse of `stats_to_json`."""
    return {
        feature: {name: np.atleast_1d(np.asarray(value)) for name, value in values.items()}
        for feature, values in data.items()
    }
