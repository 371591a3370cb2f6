"""What two parties mean is compared in one place, and found out from numbers where names fail."""

from __future__ import annotations

import numpy as np
import pytest

from vla_opt.contracts import (
    Finding,
    compare,
    compare_chunk,
    compare_features,
    findings_table,
    lines,
)
from vla_opt.conventions import (
    axis_angle_findings,
    gripper_opening,
    gripper_polarity,
    normalisation_findings,
    quaternion_findings,
    range_findings,
    rotation_of,
)

QUATERNION = ("x", "y", "z", "qx", "qy", "qz", "qw")


def verdicts(findings: list[Finding]) -> dict[str, str]:
    return {finding.item: finding.verdict for finding in findings}


# -- terms -----------------------------------------------------------------------------------------


def test_terms_match_differ_or_are_not_known() -> None:
    found = compare(
        {"hz": 20, "names": ["a", "b"], "space": "joint", "gripper": None},
        {"hz": 20.0, "names": ("a", "b"), "space": "libero", "gripper": "0 open"},
    )
    assert verdicts(found) == {
        "hz": "match",
        "names": "match",
        "space": "differs",
        "gripper": "unknown",
    }


def test_what_one_complete_party_lacks_differs() -> None:
    (finding,) = compare({"wrist": 1}, {}, complete=True)
    assert (finding.verdict, finding.line) == ("differs", "wrist: 1 against absent")
    assert verdicts(compare({"wrist": 1}, {})) == {"wrist": "unknown"}


def test_a_tolerated_difference_is_a_warning() -> None:
    found = compare(
        {"profile": "fast", "hz": 10}, {"profile": "exact", "hz": 20}, tolerated=["profile"]
    )
    assert lines(found, "warning") == ["profile: fast against exact"]
    assert lines(found, "differs") == ["hz: 10 against 20"]


def test_a_wanted_feature_that_is_absent_names_what_is_there() -> None:
    (finding,) = compare_features({"images.wirst": [3, 8, 8]}, {"images.wrist": [3, 8, 8]})
    assert finding.verdict == "differs"
    assert "Did you mean 'images.wrist'" in finding.line


def test_more_than_what_is_wanted_is_fine() -> None:
    found = compare_features({"state": (8,)}, {"state": [8], "depth": [1, 8, 8]})
    assert verdicts(found) == {"state": "match"}


@pytest.mark.parametrize(
    ("chunk", "steps", "verdict"),
    [(8, 8, "match"), (8, 4, "match"), (4, 8, "differs"), (None, 4, "unknown")],
)
def test_no_more_of_a_chunk_is_executed_than_there_is(chunk, steps, verdict) -> None:
    (finding,) = compare_chunk(chunk, steps)
    assert finding.verdict == verdict


def test_the_table_shows_differences_first_with_their_remedy() -> None:
    good = Finding(item="hz", ours="20", theirs="20", verdict="match")
    bad = Finding(item="zeta", ours="1", theirs="2", verdict="differs", remedy="mend it")
    head, first, remedy, last = findings_table([good, bad], "checkpoint", "robot").splitlines()
    assert head.split() == ["term", "checkpoint", "robot"]
    assert first.split() == ["DIFFERS", "zeta", "1", "2"]
    assert "-> mend it" in remedy
    assert last.split() == ["ok", "hz", "20", "20"]


# -- conventions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "convention"),
    [
        (("eef_x", "eef_rx", "eef_ry", "eef_rz"), "axis-angle"),
        (("ee.roll", "ee.pitch", "ee.yaw"), "Euler angles"),
        (QUATERNION, "quaternion (x, y, z, w)"),
        (("quat_w", "quat_x", "quat_y", "quat_z"), "quaternion (w, x, y, z)"),
        (("ee_quat_w", "ee_quat_x", "ee_quat_y", "ee_quat_z"), "quaternion (w, x, y, z)"),
        (("joint_1.pos", "gripper.pos"), None),
        (("x", "y", "z"), None),
    ],
)
def test_names_tell_the_convention_of_a_rotation(names, convention) -> None:
    assert rotation_of(names) == convention


def quaternions(count: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(count, 7))
    values[:, 3:] /= np.linalg.norm(values[:, 3:], axis=1, keepdims=True)
    values[:, 3:] *= np.where(values[:, 6:] < 0, -1, 1)
    return values


def test_quaternions_of_one_sign_and_norm_pass() -> None:
    assert set(verdicts(quaternion_findings(quaternions(50), QUATERNION)).values()) == {"match"}


def test_quaternions_of_both_signs_and_other_norms_are_found() -> None:
    values = quaternions(50)
    values[:10, 3:] *= -1
    values[3, 3:] *= 1.1
    found = quaternion_findings(values, QUATERNION)
    assert verdicts(found) == {"quaternion norm": "differs", "quaternion sign": "warning"}
    assert "20% negative" in found[1].ours


def test_a_rotation_vector_that_flips_to_its_other_half_is_found() -> None:
    names, episode = ("eef_rx", "eef_ry", "eef_rz"), np.repeat([0, 1], 20)
    smooth = np.zeros((40, 3))
    smooth[:, 0] = 3.0 + 0.02 * np.arange(40)
    smooth[20:, 0] -= 6.0  # another episode may begin anywhere
    assert set(verdicts(axis_angle_findings(smooth, names, episode)).values()) == {"match"}
    flipped = smooth.copy()
    flipped[8:12] *= 1 - 2 * np.pi / np.linalg.norm(flipped[8:12], axis=1, keepdims=True)
    (finding,) = axis_angle_findings(flipped, names, episode)
    assert (finding.verdict, finding.ours) == ("warning", "2, first at row 8")
    assert axis_angle_findings(smooth, ("x", "y", "z"), episode) == []


def grasps(sign: float, episodes: int = 4, length: int = 80) -> tuple[np.ndarray, ...]:
    """Commands, fingers (m) that follow them within 0.3 s at 20 Hz, and episode numbers."""
    command = np.tile(np.repeat([-1.0, 1.0], length // 2), episodes) * sign
    wanted = np.where(command * sign < 0, 0.04, 0.01)
    finger, state = 0.04, []
    for target in wanted:
        finger += np.clip(target - finger, -0.006, 0.006)
        state.append([finger, -finger])
    return command, np.array(state), np.repeat(np.arange(episodes), length)


@pytest.mark.parametrize(("sign", "polarity"), [(1.0, "low open"), (-1.0, "high open")])
def test_polarity_is_measured_from_what_the_fingers_do(sign, polarity) -> None:
    command, fingers, episode = grasps(sign)
    opening = gripper_opening(fingers, ("gripper_0", "gripper_1"))
    assert opening is not None
    assert gripper_polarity(command, opening, episode, fps=20.0) == polarity


def test_polarity_is_not_claimed_where_nothing_moves_or_nothing_follows() -> None:
    command, fingers, episode = grasps(1.0)
    opening = gripper_opening(fingers, ("gripper_0", "gripper_1"))
    assert gripper_polarity(np.ones_like(command), opening, episode, fps=20.0) is None
    noise = np.random.default_rng(0).normal(size=len(command))
    assert gripper_polarity(noise, opening, episode, fps=20.0) is None
    assert gripper_polarity(command[:5], opening[:5], episode[:5], fps=20.0) is None


def test_one_number_of_a_droid_gripper_is_zero_when_open() -> None:
    state = np.array([[0.1, 0.0], [0.1, 1.0]])
    assert gripper_opening(state, ("joint_1.pos", "gripper.pos")).tolist() == [1.0, 0.0]
    assert gripper_opening(state, ("a", "b")) is None


# -- statistics ------------------------------------------------------------------------------------

FEATURES = {
    "observation.images.image": {"type": "VISUAL", "shape": [3, 8, 8]},
    "observation.state": {"type": "STATE", "shape": [2]},
    "action": {"type": "ACTION", "shape": [2]},
}
MODES = {"VISUAL": "MEAN_STD", "STATE": "QUANTILES", "ACTION": "IDENTITY"}


@pytest.mark.parametrize(
    ("stats", "complaint"),
    [
        ({"q01": np.zeros(2), "q99": np.ones(2)}, None),
        (
            {"mean": np.zeros(2), "std": np.ones(2)},
            "needs q01 and q99, the checkpoint has mean, std",
        ),
        ({"q01": np.zeros(3), "q99": np.ones(3)}, r"shape [3], expected [2]"),
        ({"q01": np.zeros(2), "q99": np.array([1.0, np.nan])}, "q99 is not finite"),
        ({"q01": np.array([0.0, 2.0]), "q99": np.ones(2)}, "above q99 in dimension 1"),
    ],
)
def test_normalisation_without_its_statistics_is_found(stats, complaint) -> None:
    (finding,) = normalisation_findings(FEATURES, MODES, {"observation.state": stats})
    assert finding.verdict == ("match" if complaint is None else "differs")
    assert complaint is None or complaint in finding.line


def test_a_mirrored_range_is_pointed_out() -> None:
    known = {"min": np.array([2.9, 0.0]), "max": np.array([3.3, 1.0])}
    (finding,) = range_findings(
        "state", known, np.array([-3.2, 0.1]), np.array([-3.0, 0.9]), names=("eef_rx", "eef_x")
    )
    assert (finding.item, finding.verdict) == ("state, eef_rx", "differs")
    assert "mirrored" in finding.remedy


def test_a_range_within_a_quarter_of_the_known_one_passes_and_a_wider_one_warns() -> None:
    known = {"min": np.zeros(1), "max": np.ones(1)}
    within = range_findings("state", known, np.array([-0.2]), np.array([1.2]))
    wider = range_findings("state", known, np.array([-0.2]), np.array([2.0]))
    assert verdicts(within) == {"state": "match"}
    assert verdicts(wider) == {"state, dimension 0": "warning"}
    assert verdicts(range_findings("state", {}, np.zeros(1), np.ones(1))) == {"state": "unknown"}
