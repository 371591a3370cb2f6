"""Imports, from the source's files to a data set with its notes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.spec_file import SPEC_FILE, spec_of
from vla_opt._episode import Episode
from vla_opt._lerobot_write import write_dataset
from vla_opt.errors import DataError
from vla_opt.evaluation.contract import ENV_SPEC
from vla_opt.importing import droid, lerobot_v21, libero, rlds
from vla_opt.importing._tally import Tally, counted
from vla_opt.importing.config import ImportConfig, detect_format
from vla_opt.provenance import utc_now

NOTE = "import.json"
"""In the `meta` folder of an imported data set: where it came from and what was left out."""


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """What an import came to.

    Attributes:
        root: The data set.
        format: Of the source.
        episodes: Written.
        frames: Written.
        noops: Steps left out.
        skipped: Episodes left out, with the reason.
    """

    root: Path
    format: str
    episodes: int
    frames: int
    noops: int = 0
    skipped: tuple[str, ...] = ()


def import_dataset(
    config: ImportConfig, on_episode: Callable[[int], None] | None = None
) -> ImportSummary:
    """Make a LeRobotDataset v3 of demonstrations in another format.

    Args:
        config: What, where and how.
        on_episode: Called with the number of episodes written so far.

    Raises:
        DataError: The source is none of the formats, or an episode is broken.
        FileExistsError: `config.root` exists and is not empty.
        OSError: The disk is full; nothing is left behind.
    """
    kind = detect_format(config.source) if config.format == "auto" else config.format
    if kind == "lerobot_v21":
        return _convert(config)
    tally = Tally()
    if kind == "rlds":
        layout = rlds.layout_of(config)
        kind, reads = layout.name, rlds.readers(config, tally, layout)
    else:
        reads = {"libero": libero.readers, "droid": droid.readers}[kind](config, tally)
    episodes = counted(reads, tally, limit=config.limit, skip_broken=config.skip_broken)
    first = next(episodes, None)
    if first is None:
        raise DataError(f"{config.source} holds no episode that can be read. {tally.skipped}")
    note: dict[str, Any] = {}
    write_dataset(
        _noting(itertools.chain([first], episodes), note, _origin(config, kind), tally),
        config.root,
        **_layout(kind, first, note, config),
        on_episode=on_episode,
    )
    return ImportSummary(
        root=config.root,
        format=kind,
        episodes=tally.episodes,
        frames=tally.frames,
        noops=tally.noops,
        skipped=tuple(tally.skipped),
    )


def _layout(
    kind: str, first: Episode, note: dict[str, Any], config: ImportConfig
) -> dict[str, Any]:
    """Names, rate and contract of a format, as arguments of `write_dataset`."""
    height, width = next(iter(first.frames.values())).shape[1:3]
    if kind == "rlds_other":
        return {"fps": config.rate, "meta_files": {NOTE: note}}
    if kind in ("droid", "rlds_droid"):
        return {
            "fps": droid.FPS,
            "state_names": droid.STATE_NAMES,
            "action_names": droid.ACTION_NAMES,
            "robot_type": "panda",
            "meta_files": {NOTE: note, SPEC_FILE: spec_of(droid.METADATA)},
        }
    spec = libero.spec_of(height, width)
    return {
        "fps": libero.FPS,
        "state_names": spec.state_names,
        "action_names": spec.action_names,
        "robot_type": "panda",
        "meta_files": {NOTE: note, ENV_SPEC: spec.to_dict()},
    }


def _noting(
    episodes: Iterator[Episode], note: dict[str, Any], origin: dict[str, Any], tally: Tally
) -> Iterator[Episode]:
    """Pass the episodes on; when they end, the counts are known and go into the note."""
    yield from episodes
    note.update(origin, **tally.to_dict())


def _origin(config: ImportConfig, kind: str) -> dict[str, Any]:
    origin: dict[str, Any] = {
        "format": kind,
        "source": config.source.name,
        "drop_noops": config.drop_noops and not kind.startswith("rlds_"),
        "time_utc": utc_now(),
    }
    if kind in ("libero", "rlds"):
        origin["noop_threshold"] = config.noop_threshold
    if kind == "libero":
        origin["pairing"] = config.pairing
    return origin


def _convert(config: ImportConfig) -> ImportSummary:
    files = lerobot_v21.convert(config.source, config.root)
    tally = Tally(episodes=len(files.episodes), frames=sum(e.length for e in files.episodes))
    origin = {**_origin(config, "lerobot_v21"), "drop_noops": False}
    lerobot_v21.note(config.root, {**origin, **tally.to_dict()})
    return ImportSummary(
        root=config.root, format="lerobot_v21", episodes=tally.episodes, frames=tally.frames
    )
