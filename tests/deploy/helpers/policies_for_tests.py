"""Policies with known answers and known faults."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from deploy.metadata import ServerMetadata

HORIZON = 15
DROID = ServerMetadata(
    policy="test",
    action_space="joint_velocity",
    action_dim=8,
    action_horizon=HORIZON,
    control_hz=15.0,
    gripper="0 open, 1 closed",
    controller_profile="droid",
    inputs={
        "observation/exterior_image_1_left": (224, 224, 3),
        "observation/wrist_image_left": (224, 224, 3),
        "observation/joint_position": (7,),
        "observation/gripper_position": (1,),
        "prompt": (),
    },
)


def droid_request(prompt: str = "put the cube into the bowl") -> dict[str, Any]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (224, 224, 3), dtype=np.uint8)
    return {
        "observation/exterior_image_1_left": image,
        "observation/wrist_image_left": image[::-1],
        "observation/joint_position": np.linspace(-1, 1, 7),
        "observation/gripper_position": np.array([0.25]),
        "prompt": prompt,
    }


class Echo:
    """Answers with numbers that depend on the request; may take time, fail or hang."""

    def __init__(self, latency_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self.seen: list[dict[str, Any]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def infer(self, obs: dict[str, Any]) -> dict[str, Any]:
        self.seen.append(obs)
        time.sleep(self.latency_s)
        self.go_on.wait(30)
        if obs.get("prompt") == "raise":
            raise ZeroDivisionError("the policy's own words")
        if obs.get("prompt") == "unsendable":
            return {"actions": np.zeros((1, 8), complex)}
        state = np.asarray(obs.get("observation/joint_position", np.zeros(7)), float)
        first = np.append(state, obs.get("observation/gripper_position", 0.0))
        return {"actions": first + np.arange(HORIZON)[:, None] / 100}

    def reset(self) -> None: ...
