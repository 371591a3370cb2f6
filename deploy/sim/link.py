"""What a simulation knows and a real robot does not: where everything is. JSON lines over TCP.

Pictures, success predicates and the scripted expert come through here; a policy and its safety
filter do not.
"""

from __future__ import annotations

import json
import logging
import socket
import socketserver
import threading
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np

from deploy.errors import RobotDisconnectedError
from deploy.sim.physics import ArmPhysics, SceneState
from deploy.sim.scene import FREE_OBJECTS, TARGETS

logger = logging.getLogger(__name__)

LINK_PORT = 1339
Placement = tuple[float, float, float, float]
"""x, y, z in m and the turn about z in rad."""


class SceneServer:
    """Answers questions about the scene; runs beside the protocol server.

    Args:
        physics: The simulation.
        host: A loopback address.
        port: 0 picks a free one; see `port`.
    """

    def __init__(self, physics: ArmPhysics, host: str, port: int = LINK_PORT) -> None:
        self._physics = physics
        answer = self._answer

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                for line in self.rfile:
                    self.wfile.write(json.dumps(answer(line)).encode() + b"\n")

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server((host, port), Handler)
        self.port = int(self._server.server_address[1])

    def start(self) -> None:
        """Serve on a thread of its own."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if request["op"] == "place":
                self._physics.run(lambda: self._place(request["placements"]))
            elif request["op"] != "state":
                return {"error": f"unknown request {request['op']!r}; known: state, place"}
        except (KeyError, TypeError, ValueError, TimeoutError) as error:
            return {"error": f"{type(error).__name__}: {error}"}
        state = self._physics.scene_state()
        return {
            "time": state.time,
            "qpos": state.qpos.tolist(),
            "mocap_pos": state.mocap_pos.tolist(),
            "speed": state.speed.tolist(),
        }

    def _place(self, placements: Mapping[str, Placement]) -> None:
        """Put objects somewhere, at rest; between two cycles."""
        model, data = self._physics.model, self._physics.data
        for name, (x, y, z, turn) in placements.items():
            if name in TARGETS:
                data.mocap_pos[model.body(name).mocapid[0]] = [x, y, z]
                continue
            if name not in FREE_OBJECTS:
                raise ValueError(f"there is no {name!r}; there are {[*FREE_OBJECTS, *TARGETS]}")
            joint = model.joint(name)
            start = joint.qposadr[0]
            data.qpos[start : start + 3] = [x, y, z]
            data.qpos[start + 3 : start + 7] = _upright(name, turn)
            data.qvel[joint.dofadr[0] : joint.dofadr[0] + 6] = 0.0
        mujoco.mj_forward(model, data)


def _upright(name: str, turn: float) -> list[float]:
    """Quaternion w, x, y, z of an object that lies on the table, turned about z."""
    half = turn / 2
    about_z = np.array([np.cos(half), 0.0, 0.0, np.sin(half)])
    if name != "cucumber":
        return [float(v) for v in about_z]
    lying = np.array([np.sqrt(0.5), np.sqrt(0.5), 0.0, 0.0])  # its long axis from z to -y
    out = np.zeros(4)
    mujoco.mju_mulQuat(out, about_z, lying)
    return [float(v) for v in out]


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
