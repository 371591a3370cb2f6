"""Answers questions about the scene, beside the protocol server; see `deploy.sim.link`."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np

from deploy.sim.link import LINK_PORT, Placement
from deploy.sim.physics import ArmPhysics
from deploy.sim.scene import FREE_OBJECTS, TARGETS


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
        except (KeyError, TypeError, ValueError) as error:
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
