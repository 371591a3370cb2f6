"""``vla-opt data import|info|inspect|validate|cache|check``: get, look at and judge a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

HELP = "data sets: import other formats, info, inspect (a page), validate, cache, check"

if TYPE_CHECKING:
    from vla_opt.data import DatasetFiles, FrameCache, StatsReport


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Say what a data set holds.

    Attributes:
        root: Folder of a LeRobotDataset v3.
    """

    root: Path


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Decode a data set into the arrays that training reads; nothing to do if they are there.

    Attributes:
        root: Folder of a LeRobotDataset v3.
        output_dir: Where the arrays go; a folder named `cache` beside the data set by default.
        image_size: Scale pictures to squares of so many pixels; their own size by default.
    """

    root: Path
    output_dir: Path | None = None
    image_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Compare the stored statistics with the exact ones, and look for damage.

    Attributes:
        root: Folder of a LeRobotDataset v3.
        cache_dir: Also check every byte of this cache.
        fix: Write the exact statistics into meta/stats.json.
    """

    root: Path
    cache_dir: Path | None = None
    fix: bool = False


def main(argv: Sequence[str]) -> int:
    """Run one of them; 0 if all is well, 1 if `check` or `validate` found something."""
    from vla_opt.cli import _data_look
    from vla_opt.errors import UnknownNameError, nearest

    actions: dict[str, Callable[[Sequence[str]], int]]
    actions = {
        "import": _data_look.import_,
        "info": _info,
        "inspect": _data_look.inspect,
        "validate": _data_look.validate,
        "cache": _cache,
        "check": _check,
    }
    if not argv or argv[0] in {"-h", "--help"}:
        print(f"usage: vla-opt data {{{','.join(actions)}}} [--key=value ...]\n\n{HELP}")
        return 0 if argv else 2
    if argv[0] not in actions:
        raise UnknownNameError(f"unknown action '{argv[0]}'.{nearest(argv[0], actions)}")
    return actions[argv[0]](argv[1:])


def _info(argv: Sequence[str]) -> int:
    from vla_opt.cli._config import parse
    from vla_opt.data import DatasetFiles

    files = DatasetFiles(parse(InfoConfig, argv).root)
    for line in describe(files):
        print(line)
    return 0


def describe(files: DatasetFiles) -> list[str]:
    """What a data set holds, line by line."""
    import numpy as np

    lengths = [episode.length for episode in files.episodes]
    size = sum(path.stat().st_size for path in files.root.rglob("*") if path.is_file())
    table = files.columns(["episode_index", "task_index"])
    first = np.unique(table["episode_index"], return_index=True)[1]
    per_task = np.bincount(table["task_index"][first], minlength=len(files.tasks))
    lines = [
        f"{files.root}: {len(lengths)} episodes, {sum(lengths)} frames at {files.fps} Hz "
        f"({sum(lengths) / files.fps / 60:.1f} min), {size / 1e6:.1f} MB",
        f"episode length: {min(lengths)} to {max(lengths)} frames, "
        f"median {int(np.median(lengths))}",
    ]
    for key, feature in files.features.items():
        if key.startswith(("observation.", "action")):
            shape = "x".join(map(str, feature["shape"]))
            lines.append(f"  {key:<28} {feature['dtype']:<8} {shape}")
    tasks = zip(files.tasks, per_task, strict=True)
    return [*lines, "tasks:", *(f"  {count:>5} x {task}" for task, count in tasks)]


def _cache(argv: Sequence[str]) -> int:
    from vla_opt.cli._config import parse
    from vla_opt.cli._progress import progress
    from vla_opt.data import DatasetFiles, build_cache

    config = parse(CacheConfig, argv)
    output_dir = config.output_dir or config.root.parent / "cache"
    total = int(DatasetFiles(config.root).info["total_frames"])
    with progress(total, "decoding", unit="frames") as bar:
        cache = build_cache(
            config.root,
            output_dir,
            image_size=config.image_size,
            on_frames=lambda done, _: bar.advance_to(done),
        )
        bar.advance_to(total)
    print(f"{output_dir}: {_summary(cache)}")
    return 0


def _summary(cache: FrameCache) -> str:
    height, width = cache.image_size
    views = ", ".join(cache.camera_keys)
    return (
        f"{len(cache)} frames of {height}x{width} from {views}, {cache.images.nbytes / 1e6:.0f} MB"
    )


def _check(argv: Sequence[str]) -> int:
    from vla_opt.cli._config import parse
    from vla_opt.data import FrameCache, check_stats, fix_stats

    config = parse(CheckConfig, argv)
    if config.cache_dir is not None:
        FrameCache(config.cache_dir).verify()
        print(f"ok    {config.cache_dir}: every byte is as written")
    reports = check_stats(config.root)
    for report in reports:
        print(_verdict(report))
    if all(report.agrees for report in reports):
        return 0
    if config.fix:
        fix_stats(config.root)
        print(f"wrote the exact statistics to {config.root / 'meta/stats.json'}")
        return 0
    print("\nNormalisation would use wrong bounds. Mend it with --fix=true.")
    return 1


def _verdict(report: StatsReport) -> str:
    if report.agrees:
        return f"ok    {report.feature}"
    return (
        f"WRONG {report.feature}: {report.worst}[{report.dimension}] is stored as "
        f"{report.stored:.6g} and is {report.exact:.6g}; {report.outside:.1%} of the rows lie "
        "outside [q01, q99], 2 % should"
    )
