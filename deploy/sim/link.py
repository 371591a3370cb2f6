"""What a simulation knows and a real robot does not: where everything is. JSON lines over TCP.

Pictures, success predicates and the scripted expert come through here; a policy and its safety
filter do not. This is the asking side, which needs no simulator; `deploy.sim.link_server` answers.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.errors import RobotDisconnectedError
from deploy.limits import Array

LINK_PORT = 1339
Placement = tuple[float, float, float, float]
"""x, y, z in m and the turn about z in rad."""


@dataclass(frozen=True, kw_only=True)
class SceneState:
    """Everything that pictures and success predicates need.

    Attributes:
        time: Robot time; s.
        qpos: Positions of all joints, MuJoCo's order.
        mocap_pos: (n, 3) where bowl and plate stand.
        speed: (7,) joint speeds; rad/s.
    """

    time: float
    qpos: Array
    mocap_pos: Array
    speed: Array


class SceneLink:
    """The asking side.

    Args:
        host: Address of the simulation.
        port: Of its `SceneServer`.
        timeout_s: For an answer.

    Raises:
        RobotDisconnectedError: Nobody answers.
    """

    def __init__(self, host: str, port: int = LINK_PORT, timeout_s: float = 10.0) -> None:
        self._where = f"{host}:{port}"
        self._lock = threading.Lock()
        try:
            self._socket = socket.create_connection((host, port), timeout=timeout_s)
        except OSError as error:
            raise RobotDisconnectedError(
                f"no simulated scene answers at {self._where} ({error}): is the simulation running?"
            ) from error
        self._file = self._socket.makefile("rb")

    def state(self) -> SceneState:
        """The scene of this moment.

        Raises:
            RobotDisconnectedError: The simulation went away.
        """
        return self._ask({"op": "state"})

    def place(self, placements: Mapping[str, Placement]) -> SceneState:
        """Put objects somewhere; the scene thereafter.

        Raises:
            RobotDisconnectedError: The simulation went away.
            ValueError: There is no such object.
        """
        return self._ask({"op": "place", "placements": dict(placements)})

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()

    def _ask(self, request: Mapping[str, Any]) -> SceneState:
        try:
            with self._lock:
                self._socket.sendall(json.dumps(request).encode() + b"\n")
                line = self._file.readline()
            answer = json.loads(line) if line else None
        except (OSError, ValueError) as error:
            raise RobotDisconnectedError(f"lost the scene at {self._where}: {error}") from error
        if answer is None:
            raise RobotDisconnectedError(f"the simulation at {self._where} has ended")
        if "error" in answer:
            raise ValueError(answer["error"])
        return SceneState(
            time=answer["time"],
            qpos=np.array(answer["qpos"]),
            mocap_pos=np.array(answer["mocap_pos"]),
            speed=np.array(answer["speed"]),
        )
