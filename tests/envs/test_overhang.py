"""Getting out from under a drawer before lifting, and past one into the drawer below."""

import numpy as np
import pytest

from envs._overhang import way_in, way_out


def plate(low, high, height, spacing=0.006):
    xs, ys = (np.arange(a, b + 1e-9, spacing) for a, b in zip(low, high, strict=True))
    x, y = np.meshgrid(xs, ys)
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, height)], axis=1)


ITEM = np.concatenate([plate((-0.05, -0.05), (0.05, 0.05), z) for z in (0.0, 0.05)])


@pytest.mark.parametrize("height", [0.02, 0.055])
def test_what_is_beside_or_lower_is_no_overhang(height):
    assert not way_out(ITEM, plate((0.0, -0.2), (0.2, 0.2), height)).any()


def test_the_way_out_is_the_shortest_one_that_is_free():
    drawer = plate((0.0, -0.2), (0.3, 0.2), 0.2)
    move = way_out(ITEM, drawer)
    assert move[0] == pytest.approx(-0.07, abs=0.012)
    assert abs(move[1]) < 0.03
    wall = plate((-0.12, -0.02), (-0.08, 0.3), 0.1)
    around = way_out(ITEM, np.concatenate([drawer, wall]))
    assert around[1] < -0.03


def test_no_way_out_means_staying():
    assert not way_out(ITEM, plate((-0.5, -0.5), (0.5, 0.5), 0.2)).any()


OUTWARD = np.array([0.0, -1.0])  # the drawer opens towards -y


@pytest.mark.parametrize(
    ("handle", "front", "expected"),
    [
        (0.06, 0.10, 0.0),  # nothing hangs over it
        (0.03, 0.10, -0.024),  # just past the handle
        (0.03, 0.06, -0.015),  # too little room: as far over the handle as over the front
    ],
)
def test_what_is_let_down_into_a_drawer_passes_the_handle_above_it(handle, front, expected):
    above = plate((-0.04, handle), (0.04, 0.2), 0.2)
    item = plate((-0.05, -0.05), (0.05, 0.05), 0.0, spacing=0.005)
    move = way_in(item, above, OUTWARD, front)
    np.testing.assert_allclose(move, [0.0, expected], atol=1e-9)


def test_what_hangs_beside_it_or_stands_in_front_of_the_drawer_is_not_in_the_way():
    beside, in_front = plate((0.06, 0.0), (0.2, 0.2), 0.2), plate((-0.1, -0.3), (0.1, -0.11), 0.2)
    assert not way_in(ITEM, np.concatenate([beside, in_front]), OUTWARD, 0.10).any()
    assert not way_in(ITEM, np.zeros((0, 3)), OUTWARD, 0.10).any()
