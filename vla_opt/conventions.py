"""What numbers in a data set or checkpoint mean, found out from names and from the numbers.

Three conventions break policies silently, because every shape still fits: which way the gripper's
number counts, which of the two quaternions of a rotation is meant, and which range an action has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_opt.contracts import Finding

__all__ = [
    "axis_angle_findings",
    "gripper_opening",
    "gripper_polarity",
    "normalisation_findings",
    "quaternion_columns",
    "quaternion_findings",
    "range_findings",
    "rotation_of",
]

Array = NDArray[Any]
Statistics = Mapping[str, Mapping[str, Array]]
"""Feature -> name of a statistic -> (D,)."""

NEEDED_STATISTICS: Mapping[str, tuple[str, ...]] = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
    "IDENTITY": (),
}
"""lerobot's modes of normalisation, and the statistics each of them reads."""

_AXIS_ANGLE = ("rx", "ry", "rz")
_LAG_S = 0.5  # a parallel gripper closes in about half a second
_CLEAR = 0.5  # correlation from which a polarity counts as measured
_NORM_TOLERANCE = 1e-2
_OUTSIDE = 0.25  # of a range; data of the same kind stray less


def rotation_of(names: Sequence[str]) -> str | None:
    """The convention in which dimensions of these names hold a rotation; None if they hold none.

    >>> rotation_of(["eef_x", "eef_y", "eef_z", "eef_rx", "eef_ry", "eef_rz"])
    'axis-angle'
    >>> rotation_of(["x", "y", "z", "qw", "qx", "qy", "qz"])
    'quaternion (w, x, y, z)'
    >>> rotation_of(["joint_1.pos", "gripper.pos"]) is None
    True
    """
    if columns := quaternion_columns(names):
        order = [letter for letter, _ in sorted(columns.items(), key=lambda item: item[1])]
        return f"quaternion ({', '.join(order)})"
    endings = [_ending(name) for name in names]
    for convention, wanted in (
        ("axis-angle", _AXIS_ANGLE),
        ("axis-angle", ("drx", "dry", "drz")),
        ("Euler angles", ("roll", "pitch", "yaw")),
    ):
        if all(ending in endings for ending in wanted):
            return convention
    return None


def quaternion_columns(names: Sequence[str]) -> dict[str, int]:
    """Letter of a quaternion's component -> its dimension; empty if there is none."""
    found = {}
    for number, name in enumerate(names):
        if match := re.fullmatch(r"(?:quat_?|q)([wxyz])", _ending(name)):
            found[match.group(1)] = number
    return found if len(found) == 4 else {}


def quaternion_findings(values: Array, names: Sequence[str]) -> list[Finding]:
    """Whether quaternions have norm one and one sign.

    q and -q are the same rotation: data that hold both teach a policy two answers to one question,
    and a robot that states the other one shows it what it has never seen.

    Args:
        values: (N, D) rows of the state.
        names: Of the D dimensions.
    """
    columns = quaternion_columns(names)
    if not columns:
        return []
    norms = np.linalg.norm(values[:, list(columns.values())], axis=1)
    off = float(np.abs(norms - 1).max())
    scalar = values[:, columns["w"]]
    negative = float((scalar < 0).mean())
    signs = "w >= 0" if negative == 0 else "w <= 0" if negative == 1 else "both signs of w"
    return [
        Finding(
            item="quaternion norm",
            ours=f"off by up to {off:.2g}",
            theirs="1",
            verdict="match" if off <= _NORM_TOLERANCE else "differs",
            remedy="" if off <= _NORM_TOLERANCE else "normalise them where they are recorded",
        ),
        Finding(
            item="quaternion sign",
            ours=f"{signs} ({negative:.0%} negative)",
            theirs="one sign",
            verdict="match" if negative in (0, 1) else "warning",
            remedy="" if negative in (0, 1) else "negate those with w < 0 in data and robot",
        ),
    ]


def axis_angle_findings(values: Array, names: Sequence[str], episode: Array) -> list[Finding]:
    """Whether rotation vectors go on smoothly, or jump to the other vector of the same rotation.

    r and r - 2 pi r / |r| are the same rotation. A recorder that takes the quaternion's sign as it
    comes jumps between them, most often with a hand that points down, half a turn from upright.

    Args:
        values: (N, D) rows of the state.
        names: Of the D dimensions.
        episode: (N,) number of the episode of each row.
    """
    endings = [_ending(name) for name in names]
    if not all(ending in endings for ending in _AXIS_ANGLE):
        return []
    vectors = values[:, [endings.index(ending) for ending in _AXIS_ANGLE]]
    steps = np.linalg.norm(np.diff(vectors, axis=0), axis=1)
    jumps = np.flatnonzero((steps > np.pi) & (episode[1:] == episode[:-1]))
    where = f", first at row {jumps[0] + 1}" if len(jumps) else ""
    return [
        Finding(
            item="rotation jumps",
            ours=f"{len(jumps)}{where}",
            theirs="none",
            verdict="warning" if len(jumps) else "match",
            remedy="the quaternion's sign flips while recording: keep it continuous"
            if len(jumps)
            else "",
        )
    ]


def gripper_opening(state: Array, names: Sequence[str]) -> Array | None:
    """How far open the gripper is, in any unit; None where the names do not tell.

    Two fingers of opposite sign, as LIBERO has them, or DROID's one number from 0 open to 1 closed.

    Args:
        state: (N, D).
        names: Of the D dimensions.
    """
    lower = [name.lower() for name in names]
    fingers = [i for i, name in enumerate(lower) if re.search(r"(gripper|finger)_?[01]$", name)]
    if len(fingers) == 2:
        return np.asarray(np.abs(state[:, fingers[0]] - state[:, fingers[1]]))
    single = [i for i, name in enumerate(lower) if name in ("gripper.pos", "gripper_position")]
    return np.asarray(1.0 - state[:, single[0]]) if len(single) == 1 else None


def gripper_polarity(command: Array, opening: Array, episode: Array, *, fps: float) -> str | None:
    """Which way a gripper's commands count, measured: "low open" or "high open".

    The correlation of each command with the opening half a second later, within episodes.

    Args:
        command: (N,) last number of the actions.
        opening: (N,) see `gripper_opening`.
        episode: (N,) number of the episode of each row.
        fps: Rows per second.

    Returns:
        None if the data do not tell: nothing moves, or the two are hardly related.
    """
    lag = max(1, round(_LAG_S * fps))
    if len(command) <= lag:
        return None
    same = episode[:-lag] == episode[lag:]
    first, later = command[:-lag][same], opening[lag:][same]
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(later) == 0:
        return None
    correlation = float(np.corrcoef(first, later)[0, 1])
    if abs(correlation) < _CLEAR:
        return None
    return "high open" if correlation > 0 else "low open"


def normalisation_findings(
    features: Mapping[str, Mapping[str, Any]], modes: Mapping[str, str], stats: Statistics
) -> list[Finding]:
    """Whether a checkpoint carries the statistics that its normalisation reads.

    lerobot passes a feature without statistics through as it is, and says nothing. Pictures are not
    looked at: encoders bring their own.

    Args:
        features: Feature -> `type` and `shape`, as config.json has them.
        modes: Type of feature -> mode, as `normalization_mapping` in config.json.
        stats: What the checkpoint carries.
    """
    found = []
    for name, feature in features.items():
        mode = str(modes.get(str(feature.get("type")), "IDENTITY"))
        if feature.get("type") == "VISUAL" or not NEEDED_STATISTICS.get(mode):
            continue
        problem = _statistics_problem(mode, stats.get(name, {}), list(feature["shape"]))
        found.append(
            Finding(
                item=f"statistics of {name}",
                ours=problem or f"{mode}: {', '.join(NEEDED_STATISTICS[mode])}",
                theirs="" if problem else mode,
                verdict="differs" if problem else "match",
                remedy="save the processors with the data's statistics" if problem else "",
            )
        )
    return found


def _statistics_problem(mode: str, stats: Mapping[str, Array], shape: list[int]) -> str:
    needed = NEEDED_STATISTICS[mode]
    if missing := [key for key in needed if key not in stats]:
        have = ", ".join(sorted(stats)) or "none"
        return f"{mode} needs {' and '.join(missing)}, the checkpoint has {have}"
    for key in needed:
        if list(np.shape(stats[key])) != shape:
            return f"{key} has shape {list(np.shape(stats[key]))}, expected {shape}"
        if not np.isfinite(stats[key]).all():
            return f"{key} is not finite"
    low, high = stats[needed[0]], stats[needed[1]]
    if mode != "MEAN_STD" and bool((low > high).any()):
        return f"{needed[0]} is above {needed[1]} in dimension {int(np.argmax(low > high))}"
    return ""


def range_findings(
    item: str,
    known: Mapping[str, Array],
    low: Array,
    high: Array,
    *,
    names: Sequence[str] = (),
    remedy: str = "",
) -> list[Finding]:
    """Whether numbers lie where a policy has seen them, within a quarter of the range it has seen.

    Args:
        item: What is compared, for example "range of observation.state".
        known: Statistics of the policy; those with `min` and `max`, or `q01` and `q99`, tell.
        low: (D,) least values of the other party.
        high: (D,) greatest values.
        names: Of the D dimensions.
        remedy: What to do where they lie elsewhere.

    Returns:
        One finding; a mirrored dimension (the other's range is minus the known one) is pointed out,
        because that is what a wrong sign convention looks like.
    """
    bounds = next(
        ((known[a], known[b]) for a, b in (("min", "max"), ("q01", "q99")) if {a, b} <= set(known)),
        None,
    )
    if bounds is None or np.shape(bounds[0]) != np.shape(low):
        return [Finding(item=item, ours="not stated", theirs="known", verdict="unknown")]
    floor, ceiling = (np.asarray(bound, dtype=np.float64) for bound in bounds)
    margin = _OUTSIDE * (ceiling - floor) + 1e-6
    outside = (low < floor - margin) | (high > ceiling + margin)
    if not outside.any():
        return [Finding(item=item, ours="covers", theirs="all dimensions", verdict="match")]
    found = []
    for d in np.flatnonzero(outside):
        mirrored = -low[d] <= ceiling[d] + margin[d] and -high[d] >= floor[d] - margin[d]
        disjoint = high[d] < floor[d] - margin[d] or low[d] > ceiling[d] + margin[d]
        label = names[d] if d < len(names) else f"dimension {d}"
        found.append(
            Finding(
                item=f"{item}, {label}",
                ours=f"{floor[d]:.3g} .. {ceiling[d]:.3g}",
                theirs=f"{low[d]:.3g} .. {high[d]:.3g}",
                verdict="differs" if disjoint else "warning",
                remedy="mirrored: is the sign convention another?"
                if disjoint and mirrored
                else remedy,
            )
        )
    return found


def _ending(name: str) -> str:
    """The last word of a dimension's name: "eef_rx" -> "rx", "ee.quat_w" -> "quat_w"."""
    last = name.lower().rpartition(".")[2]
    if match := re.search(r"(?:^|_)(quat_[wxyz])$", last):
        return match.group(1)
    return last.rpartition("_")[2]
