"""Noise on a demonstrator's actions.

It is injected in the manner of DART (Laskey et al. 2017, arXiv 1703.09327): the disturbed action is
executed, the expert's own action for the state it finds itself in is recorded. The policy so sees
how to come back from where its own errors will lead it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NOISE_HOLD = 6  # control steps for which a bias lasts: an error of aim, not a tremble
NOISE_WHITE = 0.5  # white noise on top, as a share of the bias
NOISE_ROTATION = 0.15  # rotation drags the grip site along, so a little goes far


class Disturbance:
    """Noise on an expert's actions: a bias that lasts for some steps, and white noise.

    Args:
        level: standard deviation of the bias in action units; 0 disturbs nothing.
        rng: where the noise comes from.
    """

    def __init__(self, level: float, rng: np.random.Generator) -> None:
        self._level = level
        self._rng = rng
        self._bias: NDArray[np.float64] = np.zeros(6)
        self._steps = 0

    def __call__(self, action: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
        """The action to execute, (7,); the gripper is never disturbed.

        Args:
            action: the expert's action, (7,).
            scale: how much the situation tolerates, 0 to 1.
        """
        if self._steps % NOISE_HOLD == 0:
            self._bias = self._rng.normal(0.0, 1.0, 6)
        self._steps += 1
        noise = self._level * (self._bias + NOISE_WHITE * self._rng.normal(0.0, 1.0, 6))
        noise[3:] *= NOISE_ROTATION
        return np.concatenate([np.clip(action[:6] + scale * noise, -1.0, 1.0), action[6:]])
