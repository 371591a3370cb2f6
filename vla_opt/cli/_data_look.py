"""``vla-opt data import|inspect|validate``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Write one HTML page about a data set: checks, statistics, histograms, pictures, videos.

    Attributes:
        root: Folder of a LeRobotDataset v3.
        out: Where to write; inspect.html beside the data set if not given.
        episodes: Show so many of the first episodes.
    """

    root: Path
    out: Path | None = None
    episodes: int = 3

    def __post_init__(self) -> None:
        """Check the number."""
        if self.episodes < 0:
            raise ValueError(f"episodes={self.episodes}: expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """Look for what damages a policy: rates, NaN, polarity, quaternions, ranges, lengths.

    Attributes:
        root: Folder of a LeRobotDataset v3.
        strict: Warnings count, too.
    """

    root: Path
    strict: bool = False


def import_(argv: Sequence[str]) -> int:
    """Import demonstrations in another format; say what was left out."""
    from vla_opt.cli._config import parse
    from vla_opt.importing import ImportConfig, import_dataset

    config = parse(ImportConfig, argv)
    summary = import_dataset(config, _tell)
    print(
        f"{summary.root}: {summary.format}: {summary.episodes} episodes, {summary.frames} frames"
        + (f"; {summary.noops} no-ops left out" if summary.noops else "")
    )
    for reason in summary.skipped:
        print(f"left out: {reason}")
    print(f"next: vla-opt data validate --root={summary.root}")
    return 0


def _tell(episodes: int, every: int = 10) -> None:
    """Lines instead of a bar: how many there will be is known only at the end."""
    if episodes % every == 0:
        print(f"imported {episodes} episodes", file=sys.stderr, flush=True)


def inspect(argv: Sequence[str]) -> int:
    """Write the page."""
    from vla_opt._data_page import dataset_page
    from vla_opt._data_validate import validate_dataset
    from vla_opt._lerobot_read import DatasetFiles
    from vla_opt.cli._config import parse
    from vla_opt.io import atomic_write_text

    config = parse(InspectConfig, argv)
    findings = validate_dataset(config.root)
    out = config.out or config.root.absolute().parent / f"{config.root.name}-inspect.html"
    text = dataset_page(DatasetFiles(config.root), findings, episodes=config.episodes)
    atomic_write_text(out, text)
    print(f"page: {out} ({len(text) / 1e6:.1f} MB)")
    return 0


def validate(argv: Sequence[str]) -> int:
    """Print what was found; 1 if the data are unfit."""
    from vla_opt._data_validate import validate_dataset
    from vla_opt.cli._config import parse
    from vla_opt.contracts import findings_table, lines

    config = parse(ValidateConfig, argv)
    findings = validate_dataset(config.root)
    print(findings_table(findings, "found", "expected"))
    bad, warned = len(lines(findings, "differs")), len(lines(findings, "warning"))
    print(f"\n{config.root}: {bad} defects, {warned} warnings")
    return 1 if bad or (config.strict and warned) else 0
