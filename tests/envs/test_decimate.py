"""Decimation: welding that is fast and finds what numpy's slow way finds."""

import numpy as np

from envs._decimate import _distinct, _weld


def test_distinct_rows_are_those_of_numpy():
    rng = np.random.default_rng(0)
    for columns in (2, 3):
        rows = rng.integers(-40, 40, (3000, columns)) // rng.integers(1, 9, columns)
        unique, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        ours, number = _distinct(rows)
        np.testing.assert_array_equal(ours, first)
        np.testing.assert_array_equal(number, inverse.reshape(-1))
        np.testing.assert_array_equal(rows[ours], unique)


def test_points_closer_than_the_grid_become_one():
    points = np.array([[0, 0, 0], [1, 0, 0], [0.001, 0, 0], [1, 0.2, 0]], np.float32)
    np.testing.assert_array_equal(_weld(points, 10.0), [0, 1, 0, 3])
