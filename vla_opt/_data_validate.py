"""Is a data set fit to learn from? What damages a policy without stopping its training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.spec_file import read_spec
from vla_opt._data_contract import declared_spec, names_of, numbers_of, own_findings
from vla_opt._dataset_stats import check_stats
from vla_opt._lerobot_read import ACTION, STATE, DatasetFiles
from vla_opt.contracts import Finding, Verdict
from vla_opt.importing.noops import kept_rows

_JITTER = 1e-4  # s; the tolerance with which stock readers compare times
_NOOPS = 0.02  # share of steps that stand still from which a policy may learn to stand
_SHORT = 0.25  # of the median length
_Table = dict[str, NDArray[Any]]


def validate_dataset(root: Path) -> list[Finding]:
    """Look at every number of a data set, and at the length of its videos.

    Returns:
        What was found beside what is expected: "differs" makes the data unfit.

    Raises:
        DataError: `root` is no LeRobotDataset v3, or a file of it is missing or damaged.
    """
    files = DatasetFiles(Path(root))
    clock = files.columns(["timestamp", "frame_index", "episode_index"])
    table = numbers_of(files)
    found = [*_lengths(files, clock), *_times(files, clock), *_finite(files, table)]
    if all(finding.verdict == "match" for finding in found if finding.item.startswith("finite")):
        found += [*_ranges(files, table), *_noops(files, table, clock), *_statistics(files)]
        found += own_findings(files)
    return [*found, *_videos(files)]


def _finding(item: str, found: str, expected: str, verdict: Verdict, remedy: str = "") -> Finding:
    remedy = "" if verdict == "match" else remedy
    return Finding(item=item, ours=found, theirs=expected, verdict=verdict, remedy=remedy)


def _lengths(files: DatasetFiles, clock: _Table) -> Iterator[Finding]:
    promised = np.array([episode.length for episode in files.episodes])
    counted = np.bincount(clock["episode_index"], minlength=len(promised))
    same = counted.tolist() == promised.tolist()
    yield _finding(
        "episode lengths",
        f"{promised.min()} to {promised.max()} frames, median {int(np.median(promised))}",
        "as many rows as promised",
        "match" if same else "differs",
        "table and meta/episodes do not belong together: copy or write the data set again",
    )
    short = np.flatnonzero(promised < _SHORT * np.median(promised))
    yield _finding(
        "short episodes",
        f"{len(short)} of {len(promised)}" + (f": {short[:5].tolist()}" if len(short) else ""),
        "none below a quarter of the median",
        "warning" if len(short) else "match",
        "look at them: they may have been broken off",
    )


def _times(files: DatasetFiles, clock: _Table) -> Iterator[Finding]:
    expected = clock["frame_index"] / files.fps
    off = np.abs(clock["timestamp"] - expected)
    worst = int(off.argmax())
    yield _finding(
        "frame rate",
        f"off by up to {1e3 * off[worst]:.3g} ms (row {worst})",
        f"{files.fps} Hz",
        "match" if off[worst] <= _JITTER else "differs",
        "times do not follow the promised rate: actions would be learned at the wrong pace",
    )
    starts = np.diff(clock["episode_index"], prepend=-1) != 0
    steps = np.diff(clock["frame_index"], prepend=-1)
    gaps = np.flatnonzero(np.where(starts, clock["frame_index"] != 0, steps != 1))
    yield _finding(
        "frame numbers",
        f"{len(gaps)} gaps" + (f", first at row {gaps[0]}" if len(gaps) else ""),
        "0, 1, 2 ... in every episode",
        "differs" if len(gaps) else "match",
        "frames were dropped: chunks would jump",
    )


def _finite(files: DatasetFiles, table: _Table) -> Iterator[Finding]:
    for name, values in table.items():
        bad = np.argwhere(~np.isfinite(values))
        where = (
            f", first at row {bad[0][0]}, {names_of(files, name)[bad[0][1]]}" if len(bad) else ""
        )
        yield _finding(
            f"finite {name}",
            f"{len(bad)} of {values.size} are not{where}",
            "all",
            "differs" if len(bad) else "match",
            "leave these episodes out",
        )


def _ranges(files: DatasetFiles, table: _Table) -> Iterator[Finding]:
    limits = _limits(files)
    for name, values in table.items():
        names = names_of(files, name)
        still = [names[d] for d in np.flatnonzero(np.ptp(values, axis=0) == 0)]
        yield _finding(
            f"constant {name}",
            ", ".join(still) or "none",
            "none",
            "warning" if still else "match",
            "normalising divides by their spread: is the recording complete?",
        )
    if limits is not None and ACTION in table:
        low, high = table[ACTION].min(), table[ACTION].max()
        inside = low >= limits[0] - 1e-6 and high <= limits[1] + 1e-6
        yield _finding(
            "action range",
            f"{low:.4g} .. {high:.4g}",
            f"{limits[0]:g} .. {limits[1]:g}",
            "match" if inside else "warning",
            "what lies beyond is cut off when it is executed",
        )


def _limits(files: DatasetFiles) -> tuple[float, float] | None:
    """Between which values the declared environment or robot takes actions."""
    if (spec := declared_spec(files.root)) is not None:
        return spec.action_low, spec.action_high
    robot = read_spec(files.root / "meta")
    velocities = robot is not None and str(robot.action_space).endswith("velocity")
    return (-1.0, 1.0) if velocities else None


def _noops(files: DatasetFiles, table: _Table, clock: _Table) -> Iterator[Finding]:
    robot = read_spec(files.root / "meta")
    absolute = robot is not None and str(robot.action_space).endswith("position")
    if ACTION not in table or absolute or (declared_spec(files.root) is None and robot is None):
        return
    edges = [*np.flatnonzero(np.diff(clock["episode_index"], prepend=-1)), len(table[ACTION])]
    kept = sum(len(kept_rows(table[ACTION][a:b])) for a, b in itertools.pairwise(edges))
    share = 1 - kept / len(table[ACTION])
    yield _finding(
        "no-ops",
        f"{share:.1%} of the steps",
        f"below {_NOOPS:.0%}",
        "warning" if share > _NOOPS else "match",
        "a policy that learns them may stand for ever; `vla-opt data import` leaves them out",
    )


def _statistics(files: DatasetFiles) -> Iterator[Finding]:
    wrong = [r.feature for r in check_stats(files.root) if not r.agrees and r.feature in _USED]
    yield _finding(
        "statistics",
        f"wrong for {', '.join(wrong)}" if wrong else "exact",
        "exact",
        "warning" if wrong else "match",
        "`vla-opt data check --fix=true` mends them",
    )


_USED = (STATE, ACTION)


def _videos(files: DatasetFiles) -> Iterator[Finding]:
    """Whether each camera's files hold as many frames as the table has rows."""
    import av

    for camera in files.camera_keys:
        if files.features[camera]["dtype"] != "video":
            continue
        paths = {
            files.info["video_path"].format(video_key=camera, chunk_index=chunk, file_index=file)
            for chunk, file, _ in (episode.videos[camera] for episode in files.episodes)
        }
        frames, missing = 0, [path for path in sorted(paths) if not (files.root / path).is_file()]
        for path in sorted(paths - set(missing)):
            with av.open(str(files.root / path)) as container:
                frames += container.streams.video[0].frames
        wanted = sum(episode.length for episode in files.episodes)
        yield _finding(
            f"frames of {camera}",
            f"missing {missing[0]}" if missing else str(frames),
            str(wanted),
            "match" if frames == wanted and not missing else "differs",
            "the data set is incomplete: copy or write it again",
        )
