"""Are the statistics that travel with a data set the right ones, and if not, make them so."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_opt._lerobot_read import DatasetFiles
from vla_opt._stats import QUANTILES, Stats, exact_stats, stats_from_json, stats_to_json
from vla_opt.errors import DataError
from vla_opt.io import atomic_write_json

_NOT_NUMBERS = ("video", "image", "string", "language")


@dataclass(frozen=True, kw_only=True)
class StatsReport:
    """How far stored statistics of one feature are from the exact ones.

    Attributes:
        feature: Its name.
        worst: The statistic that is furthest off, or "" when all agree.
        dimension: Where it is.
        stored: What ``meta/stats.json`` says; NaN if it says nothing.
        exact: What it is.
        outside: Share of rows that lie outside the stored [q01, q99]; 0.02 is intended.
    """

    feature: str
    worst: str
    dimension: int
    stored: float
    exact: float
    outside: float

    @property
    def agrees(self) -> bool:
        """Whether every stored statistic is the exact one, up to rounding."""
        return not self.worst


def check_stats(root: str | Path) -> list[StatsReport]:
    """Compare ``meta/stats.json`` with the exact statistics, for every column of numbers.

    Raises:
        DataError: `root` is no LeRobotDataset, or it is damaged.
    """
    files = DatasetFiles(Path(root))
    stored = read_stats(files.root)
    table = _numbers(files)
    return [_compare(name, stored.get(name, {}), values) for name, values in table.items()]


def fix_stats(root: str | Path) -> Stats:
    """Replace the statistics of all columns of numbers in ``meta/stats.json`` by the exact ones.

    Those of pictures are kept.

    Raises:
        DataError: `root` is no LeRobotDataset, or it is damaged.
        OSError: The file cannot be written; it is then as it was.
    """
    files = DatasetFiles(Path(root))
    stats = read_stats(files.root)
    stats |= {name: exact_stats(values) for name, values in _numbers(files).items()}
    atomic_write_json(files.root / "meta/stats.json", stats_to_json(stats))
    return stats


def read_stats(root: Path) -> Stats:
    """The statistics in ``meta/stats.json``; none if there is no such file.

    Raises:
        DataError: The file is damaged.
    """
    path = root / "meta/stats.json"
    if not path.is_file():
        return {}
    try:
        return stats_from_json(json.loads(path.read_bytes()))
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}): remove it and write it again.") from error


def _numbers(files: DatasetFiles) -> dict[str, NDArray[Any]]:
    names = [key for key, f in files.features.items() if f["dtype"] not in _NOT_NUMBERS]
    return files.columns(names)


def _compare(name: str, stored: dict[str, NDArray[Any]], values: NDArray[Any]) -> StatsReport:
    exact = exact_stats(values)
    scale = np.maximum(exact["max"] - exact["min"], 1e-12)
    worst, dimension, largest = "", 0, 1e-4  # of the range; float32 rounding is far below
    for key in ("mean", "std", "min", "max", *QUANTILES):
        given = np.ravel(stored[key]) if key in stored else np.full_like(exact[key], np.nan)
        error = np.nan_to_num(np.abs(given - exact[key]) / scale, nan=np.inf)
        if error.max() > largest:
            worst, dimension, largest = key, int(error.argmax()), float(error.max())
    rows = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    low, high = (np.ravel(stored.get(q, np.array([np.nan]))) for q in ("q01", "q99"))
    outside = ((rows < low) | (rows > high)).mean(axis=0)
    return StatsReport(
        feature=name,
        worst=worst,
        dimension=dimension,
        stored=float(np.ravel(stored[worst])[dimension]) if worst in stored else float("nan"),
        exact=float(exact[worst][dimension]) if worst else float("nan"),
        outside=float(outside.max()),
    )
