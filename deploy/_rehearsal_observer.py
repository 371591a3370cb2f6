"""Looks at a rehearsal from the side: joint speeds and pictures over the robot's time."""

from __future__ import annotations

import threading

import numpy as np

from deploy._rehearsal_report import Sample
from deploy.cameras import Image
from deploy.sim.cameras import SceneCameras
from deploy.sim.process import SimulatedArm

FILM_FPS = 5
_FILMED = ("exterior_left", "wrist")


class Observer:
    """Samples joint speeds and takes pictures in the robot's time, on a thread of its own.

    Args:
        arm: The simulation.
        film: Whether to take pictures.

    Attributes:
        samples: What was sampled.
        frames: The pictures, two views side by side.
    """

    def __init__(self, arm: SimulatedArm, *, film: bool) -> None:
        self.samples: list[Sample] = []
        self.frames: list[Image] = []
        self._link = arm.link()
        self._cameras = SceneCameras(self._link) if film else None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(30)
        if self._cameras is not None:
            self._cameras.close()
        self._link.close()

    def _run(self) -> None:
        begin, filmed = self._link.state().time, -np.inf
        while not self._ended.wait(0.02):
            state = self._link.state()
            now = state.time - begin
            if self.samples and now == self.samples[-1].time_s:
                continue
            self.samples.append(Sample(time_s=now, speed=tuple(map(float, state.speed))))
            if self._cameras is not None and now - filmed >= 1 / FILM_FPS:
                filmed = now
                views = [self._cameras.draw(name).image for name in _FILMED]
                self.frames.append(np.concatenate(views, axis=1))
