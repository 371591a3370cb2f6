"""Runs the simulated arm as a program: ``python -m deploy.sim.server --host 127.0.0.1``.

Speaks Franka's protocol on TCP 1337 (arm) and 1338 (hand) with both enforcements on: lost cycles
and broken motion limits abort a motion under the real robot's names for it.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from deploy.errors import RobotError
from deploy.sim._beside import franka_sim
from deploy.sim.hand import SimulatedHand
from deploy.sim.link_server import SceneServer
from deploy.sim.physics import ArmPhysics
from deploy.sim.process import READY


def check_loopback(host: str) -> str:
    """`host`, if only this machine can reach it.

    Raises:
        RobotError: It is not a loopback address.
    """
    try:
        if ipaddress.ip_address(host).is_loopback:
            return host
    except ValueError:
        pass
    raise RobotError(
        f"the simulated arm has no protection against strangers and listens on loopback addresses "
        f"only (127.0.0.1 ... 127.255.255.254), got {host!r}"
    )


def build(host: str, *, patience_s: float = 0.0) -> tuple[Any, SceneServer]:
    """The protocol server, with arm and hand, and the scene's link; neither is started."""
    physics = ArmPhysics(patience_s=patience_s)
    server = franka_sim("franka_sim.franka_sim_server").FrankaSimServer(
        host=check_loopback(host),
        physics_sim=physics,
        gripper_backend=SimulatedHand(physics),
        enforce_comm_constraints=True,
        enforce_motion_limits=True,
    )
    return server, SceneServer(physics, host)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, or until whoever started it is gone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument(
        "--patience",
        type=float,
        default=0.0,
        help="s that a client may take to answer a state, in stretched robot time; 0 is real time",
    )
    parser.add_argument(
        "--until-eof",
        action="store_true",
        help="end with standard input: with the program at the other end, however that one ends",
    )
    parser.add_argument("--log", default="WARNING", help="level of the log on standard error")
    options = parser.parse_args(arguments)
    if options.until_eof:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    logging.basicConfig(level=options.log.upper(), stream=sys.stderr)
    sys.setswitchinterval(0.0005)  # threads of a 1 kHz protocol take turns sooner than by default
    server, link = build(options.host, patience_s=options.patience)
    ended = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        ended.set()
        server.physics_sim.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    threading.Thread(target=_announce, args=(server, link), daemon=True).start()
    try:
        server.start()  # physics runs on this thread
    finally:
        server.stop()
    return 0 if ended.is_set() else 1


def _end_with_stdin() -> None:
    """End this process, whatever it is doing, when nobody holds the other end any more."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)


def _announce(server: Any, link: SceneServer) -> None:
    """Say that clients may come, once the physics is running."""
    while not server.physics_sim.running:
        threading.Event().wait(0.02)
    link.start()
    sys.stderr.write(READY + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
