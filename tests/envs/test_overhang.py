"""Getting out from under a drawer before lifting."""

import numpy as np
import pytest

from envs._overhang import way_out


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
