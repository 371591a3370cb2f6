"""Turning what does not go in as it is held."""

import numpy as np
import pytest

from envs._fit import Opening, fit

SLOT = Opening(axes=np.eye(2), half=np.array([0.03, 0.06]))


def rectangle(length, width, yaw, middle=(0.0, 0.0)):
    corners = np.array([[x, y] for x in (-1, 1) for y in (-1, 1)]) * [length / 2, width / 2]
    cos, sin = np.cos(yaw), np.sin(yaw)
    return (corners + middle) @ np.array([[cos, sin], [-sin, cos]])


def turned(points, angle):
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def test_what_fits_stays_as_it_is():
    found = fit(rectangle(0.03, 0.1, 0.0), SLOT)
    assert found.turn == 0
    np.testing.assert_array_equal(found.shift, 0)


@pytest.mark.parametrize("yaw", [-1.4, -0.6, 0.5, 1.5])
def test_a_book_is_turned_along_the_slot_and_centred(yaw):
    book = rectangle(0.03, 0.11, yaw, middle=(0.0, 0.012))
    found = fit(book, SLOT)
    placed = turned(book, found.turn) + found.shift
    assert (np.abs(placed).max(axis=0) <= SLOT.half).all()
    assert abs(found.turn) <= abs(yaw) + 0.06


def test_what_fits_in_no_way_is_turned_as_well_as_possible():
    found = fit(rectangle(0.08, 0.2, 1.2), SLOT)
    assert found.turn == pytest.approx(-1.2, abs=0.06)


def test_a_slot_may_lie_askew():
    cos, sin = np.cos(0.7), np.sin(0.7)
    askew = Opening(axes=np.array([[cos, sin], [-sin, cos]]), half=SLOT.half)
    assert fit(rectangle(0.03, 0.11, 0.0), askew).turn == pytest.approx(0.7, abs=0.2)
