"""Grasp planning on synthetic shapes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs._grasp import (
    MAX_OPENING,
    PALM_ABOVE,
    GraspError,
    clearance,
    nearest_yaw,
    plan_grasp,
)
from envs._taste import Taste

NOTHING = np.zeros((0, 3))
ALONG_Y = np.pi / 2  # the Panda's closing axis at LIBERO's start pose


def box(size, center=(0.0, 0.0), yaw=0.0, bottom=0.0):
    """Surface points of an upright box, (N, 3)."""
    axes = [np.linspace(-s / 2, s / 2, max(2, round(s / 0.005) + 1)) for s in size]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    surface = grid[(np.abs(grid) >= np.array(size) / 2 - 1e-9).any(1)]
    cos, sin = np.cos(yaw), np.sin(yaw)
    turned = surface @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    return turned + np.array([*center, bottom + size[2] / 2])


def bowl(radius=0.06, height=0.05, wall=0.006):
    """Surface points of a bowl that opens towards its rim, with a floor."""
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    points = []
    for z in np.linspace(0, height, 12):
        outer = radius * (0.7 + 0.3 * z / height)
        points += [
            np.stack([r * np.cos(angle), r * np.sin(angle), np.full_like(angle, z)], 1)
            for r in (outer, outer - wall)
        ]
    points += [
        np.stack([r * np.cos(angle), r * np.sin(angle), np.zeros_like(angle)], 1)
        for r in np.linspace(0, 0.6 * radius, 8)
    ]
    return np.concatenate(points)


def test_a_box_is_gripped_across_without_turning_the_hand():
    grasp = plan_grasp(box((0.08, 0.04, 0.03)), NOTHING, ALONG_Y)
    assert grasp.kind == "body"
    assert grasp.yaw == pytest.approx(ALONG_Y)
    assert grasp.width == pytest.approx(0.04, abs=0.002)
    np.testing.assert_allclose(grasp.position[:2], 0, atol=1e-6)


def test_the_hand_turns_when_only_the_other_side_fits():
    grasp = plan_grasp(box((0.04, 0.12, 0.03)), NOTHING, ALONG_Y)
    assert abs(grasp.yaw - ALONG_Y) == pytest.approx(np.pi / 2)
    assert grasp.width == pytest.approx(0.04, abs=0.002)


@pytest.mark.parametrize("turn", [-0.6, -0.3, 0.3, 0.6])
def test_the_closing_axis_follows_a_turned_box(turn):
    grasp = plan_grasp(box((0.08, 0.04, 0.03), yaw=turn), NOTHING, ALONG_Y)
    assert grasp.yaw == pytest.approx(ALONG_Y + turn, abs=0.1)


def test_a_flat_body_is_gripped_clear_of_its_support():
    grasp = plan_grasp(box((0.08, 0.04, 0.02)), NOTHING, ALONG_Y)
    assert 0.010 < grasp.position[2] < 0.02


def test_the_palm_stays_above_a_tall_body():
    grasp = plan_grasp(box((0.04, 0.04, 0.15)), NOTHING, ALONG_Y)
    assert grasp.position[2] + PALM_ABOVE > 0.15


def test_a_bowl_is_gripped_at_its_rim_without_turning_the_hand():
    grasp = plan_grasp(bowl(), NOTHING, ALONG_Y)
    assert grasp.kind == "rim"
    assert grasp.width < 0.02
    assert grasp.yaw == pytest.approx(ALONG_Y)
    assert 0.045 < grasp.position[1] < 0.062
    assert abs(grasp.position[0]) < 0.005


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_a_rim_is_gripped_where_the_carry_needs_less_reach(side):
    base, carry = np.array([-0.7, 0.0]), np.array([0.0, 0.2 * side])
    grasp = plan_grasp(bowl(), NOTHING, ALONG_Y, base=base, carry=carry)
    assert np.sign(grasp.position[1]) == -side


def test_a_neighbour_moves_a_rim_grasp_to_where_there_is_room():
    neighbour = box((0.08, 0.05, 0.10), center=(0.0, 0.10))
    grasp = plan_grasp(bowl(), neighbour, ALONG_Y)
    assert clearance(grasp.position, grasp.yaw, neighbour) > 0.0
    assert grasp.position[1] < 0.045


def test_a_neighbour_where_a_finger_would_go_turns_a_body_grasp():
    body = box((0.04, 0.04, 0.06))
    neighbour = box((0.03, 0.02, 0.06), center=(0.0, 0.05))
    free, crowded = (plan_grasp(body, o, ALONG_Y) for o in (NOTHING, neighbour))
    assert clearance(free.position, free.yaw, neighbour) < 0
    assert clearance(crowded.position, crowded.yaw, neighbour) > 0


@pytest.mark.parametrize("points", [NOTHING, box((0.2, 0.2, 0.05))])
def test_what_cannot_be_gripped_is_refused(points):
    with pytest.raises(GraspError):
        plan_grasp(points, NOTHING, ALONG_Y)


def test_what_is_too_wide_is_held_by_its_handle():
    pot = box((0.09, 0.09, 0.10))
    handle = box((0.014, 0.05, 0.06), center=(0.0, 0.07), bottom=0.03)
    grasp = plan_grasp(np.concatenate([pot, handle]), NOTHING, ALONG_Y)
    assert grasp.kind == "part"
    assert abs(np.sin(grasp.yaw)) < 0.1
    assert abs(grasp.position[0]) < 0.004
    assert 0.055 < grasp.position[1] < 0.095
    assert grasp.width < 0.02


def test_clearance_is_negative_inside_a_finger_and_grows_with_distance():
    position = np.array([0.0, 0.0, 0.1])
    finger = np.array([[0.0, 0.05, 0.1]])
    assert clearance(position, ALONG_Y, finger) < 0
    assert clearance(position, ALONG_Y, finger - [0, 0, 0.03]) == pytest.approx(0.02)
    assert clearance(position, ALONG_Y, np.zeros((1, 3)) + position) > 0  # between the fingers
    assert clearance(position, ALONG_Y, NOTHING) == np.inf


@settings(deadline=None, max_examples=30)
@given(
    shift=st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    length=st.floats(0.045, 0.10),
    width=st.floats(0.02, 0.05),
    turn=st.floats(-1.4, 1.4),
)
def test_a_grasp_moves_with_its_object_and_fits_the_hand(shift, length, width, turn):
    points = box((length, width, 0.03), yaw=turn)
    here = plan_grasp(points, NOTHING, ALONG_Y)
    there = plan_grasp(points + np.array(shift), NOTHING, ALONG_Y)
    np.testing.assert_allclose(there.position - here.position, shift, atol=1e-6)
    assert there.yaw == pytest.approx(here.yaw)
    assert here.width < MAX_OPENING
    assert abs(here.yaw - ALONG_Y) <= np.pi / 2 + 1e-9


@given(st.floats(-20, 20), st.floats(-20, 20))
def test_nearest_yaw_is_the_same_axis_at_most_a_quarter_turn_away(yaw, reference):
    near = nearest_yaw(yaw, reference)
    assert abs(near - reference) <= np.pi / 2 + 1e-9
    assert np.sin(near - yaw) == pytest.approx(0, abs=1e-9)


def test_a_taste_decides_between_grasps_that_are_about_as_good():
    body = box((0.04, 0.04, 0.05))
    for direction in (0.0, np.pi / 2):  # 45 degrees would be across the corners
        grasp = plan_grasp(body, NOTHING, ALONG_Y, taste=Taste(direction=direction, weight=2.0))
        assert abs(np.cos(grasp.yaw - direction)) > np.cos(np.deg2rad(25))
    sides = [
        plan_grasp(bowl(), NOTHING, ALONG_Y, taste=Taste(direction=d, weight=2.0)).position[:2]
        for d in (0.0, np.pi)
    ]
    assert sides[0][0] > sides[1][0] + 0.05


def test_no_taste_leads_to_what_does_not_fit():
    along = Taste(direction=np.pi / 2, weight=2.0)
    assert plan_grasp(box((0.04, 0.12, 0.03)), NOTHING, ALONG_Y, taste=along).width < 0.06
