"""How an executor plays chunks."""

from __future__ import annotations

from dataclasses import dataclass

from deploy._blending import BLENDS, Blend
from deploy._pacing import MODES, Mode


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig:
    """How chunks are played.

    Attributes:
        control_hz: Actions per second.
        execute_steps: When so many actions of a chunk have elapsed, the next one takes over; the
            rest is played only where that one is late.
        mode: "async" fetches chunks while others are played, "sync" stands while it asks, "auto"
            is asynchronous as long as the latency allows it.
        blend: How a chunk takes over from the former: "none", "linear" or "ensemble".
        blend_steps: Steps of a linear take-over.
        ensemble_decay: Weight exp(-decay i) of the i-th oldest chunk.
        make_up: Velocity actions of a chunk that were not executed because others were while it was
            fetched are made up for, see `deploy._blending.ActionPlan`; otherwise they are dropped.
        realtime_chunking: Let the server make chunks agree, where it can.
        max_steps: An episode ends after so many actions.
        max_hold_s: An episode ends after standing for so long.
        first_chunk_s: The same before the first chunk; a server may compile first.
        max_camera_age_s: Older pictures are not shown to the policy.
        min_success_rate: Of the robot's control cycles; below it the link to the arm is bad.
        max_blocked_s: An episode ends when every action for so long was refused by the safety
            filter or ran against one of its walls.
    """

    control_hz: float = 15.0
    execute_steps: int = 8
    mode: Mode = "auto"
    blend: Blend = "linear"
    blend_steps: int = 3
    ensemble_decay: float = 0.01
    make_up: bool = True
    realtime_chunking: bool = True
    max_steps: int = 600
    max_hold_s: float = 2.0
    first_chunk_s: float = 30.0
    max_camera_age_s: float = 0.2
    min_success_rate: float = 0.9
    max_blocked_s: float = 5.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        positive = ("control_hz", "max_hold_s", "first_chunk_s", "max_camera_age_s")
        for name in (*positive, "execute_steps", "max_steps", "max_blocked_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0.")
        if self.mode not in MODES or self.blend not in BLENDS:
            raise ValueError(f"mode={self.mode}, blend={self.blend}: one of {MODES}, {BLENDS}.")
        for name in ("blend_steps", "ensemble_decay", "min_success_rate"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more.")
