"""What a demonstrator likes, where several grasps are about as good."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Taste:
    """A direction in which a demonstrator likes to grasp, among grasps that are about as good.

    Attributes:
        direction: of the closing axis, and of the side of a rim, in the world's xy plane, radians.
        weight: cost of the least liked direction; 0 for no taste at all.
    """

    direction: float = 0.0
    weight: float = 0.0

    def of_axis(self, yaw: float) -> float:
        """Cost of a closing axis, either end of which is the same."""
        return self.weight * (1 - abs(math.cos(yaw - self.direction)))

    def of_side(self, angle: float) -> float:
        """Cost of a side of a rim."""
        return self.weight * (1 - math.cos(angle - self.direction)) / 2


NO_TASTE = Taste()
