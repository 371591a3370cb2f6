"""Starts and ends a simulated arm in a process of its own."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from deploy.errors import RobotError
from deploy.sim.link import LINK_PORT, SceneLink

READY = "simulated FR3 ready"
"""The line on the program's standard error that says that clients may connect."""

_PORTS = (1337, 1338, LINK_PORT)


def free_loopback_address() -> str:
    """An address 127.x.y.z on which the protocol's ports, which are fixed, are free.

    Raises:
        RobotError: None was found.
    """
    for _ in range(50):
        host = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(2, 254)}"
        if all(_is_free(host, port) for port in _PORTS):
            return host
    raise RobotError(f"found no loopback address with free ports {_PORTS}")


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class SimulatedArm:
    """A simulated FR3, its hand and its table. A context manager.

    Args:
        host: Loopback address; None finds a free one.
        patience_s: See `deploy.sim.physics.ArmPhysics`.
        startup_s: How long it may take to become ready.

    Raises:
        RobotError: It did not become ready; the message ends with what it printed.
    """

    def __init__(
        self, host: str | None = None, *, patience_s: float = 0.0, startup_s: float = 60.0
    ) -> None:
        self.host = host or free_loopback_address()
        self._log = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - as long as the process
        command = [sys.executable, "-m", "deploy.sim.server", "--host", self.host]
        command += ["--patience", str(patience_s), "--until-eof"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # ends when this process does, whatever ends it
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=_environment(),
            cwd=Path(__file__).resolve().parents[2],
        )
        self._ready = threading.Event()
        self._copier = threading.Thread(target=self._copy_log, daemon=True)
        self._copier.start()
        if not self._ready.wait(startup_s) or self._process.poll() is not None:
            self.close()
            raise RobotError(f"the simulated arm did not start:\n{self.log_tail()}")

    def __enter__(self) -> SimulatedArm:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the process, to freeze or to kill it."""
        return self._process.pid

    def link(self) -> SceneLink:
        """A new connection to what the simulation knows."""
        return SceneLink(self.host)

    def log_tail(self, characters: int = 2000) -> str:
        """The end of what it printed."""
        log = self._log.fileno()
        start = max(0, os.fstat(log).st_size - characters)
        return os.pread(log, characters, start).decode(errors="replace")

    def close(self) -> None:
        """End the process; harmless when it has ended."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGCONT)  # a frozen one hears nothing else
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        self._copier.join(5)
        for stream in (self._process.stdin, self._process.stderr):
            assert stream is not None
            stream.close()

    def _copy_log(self) -> None:
        """Drain the program's messages, so that it never waits for a reader."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._log.write(line)
            if line.strip() == READY.encode():
                self._ready.set()
        self._ready.set()  # ended: whoever waits looks at the exit code


def _environment() -> Mapping[str, str]:
    """One thread per numerical library: the loops of the protocol need the cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
