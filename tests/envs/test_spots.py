"""Two objects on one region."""

from types import SimpleNamespace

import numpy as np
import pytest

from envs._fit import Opening
from envs._goals import Goal
from envs._spots import shared_spot

REGION = Opening(axes=np.eye(2), half=np.array([0.075, 0.075]))


def scene(places, placed=()):
    """Objects that are 8 cm wide in x and 14 cm in y; the region's middle is (1, 0)."""
    corners = np.array([[x, y, 0] for x in (-0.04, 0.04) for y in (-0.07, 0.07)])
    places = {"region": np.array([1.0, 0, 0]), **places}
    return SimpleNamespace(
        position=lambda name: places[name],
        points=lambda name: places[name] + corners,
        opening_of=lambda name: REGION,
        satisfied=lambda goal: goal.item in placed,
    )


def goal(item, beside=""):
    return Goal(predicate="on", item=item, target="region", beside=beside)


def test_one_object_goes_to_the_middle():
    assert not shared_spot(scene({"a": np.zeros(3)}), goal("a")).any()


def test_two_objects_stand_side_by_side_where_they_are_narrow():
    both = scene({"a": np.array([0.2, 0.4, 0]), "b": np.array([0.1, -0.4, 0])})
    first, second = shared_spot(both, goal("a", "b")), shared_spot(both, goal("b", "a"))
    np.testing.assert_allclose(first, [0.055, 0])
    np.testing.assert_allclose(second, -first)


@pytest.mark.parametrize("side", [-1, 1])
def test_the_second_goes_opposite_to_the_first_wherever_that_came_to_stand(side):
    there = scene({"a": np.array([1, 0.05 * side, 0]), "b": np.array([2.0, 0, 0])}, placed=("a",))
    np.testing.assert_allclose(shared_spot(there, goal("b", "a")), [0, -0.055 * side])
