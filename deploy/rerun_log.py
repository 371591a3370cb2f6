"""Episodes as a rerun recording: pictures, actions and joints on one time line."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deploy.drivers import needed
from deploy.interfaces import INTERVENTIONS, Pictures, Tick

logger = logging.getLogger(__name__)

_TIME_LINE = "episode"


class RerunLog:
    """A watcher that writes an `.rrd` file, in a thread of its own.

    Args:
        path: Of the file; made anew.

    Raises:
        RobotError: The package rerun-sdk is not installed; says how to get it.
    """

    def __init__(self, path: Path) -> None:
        self._rerun: Any = needed("rerun", "rerun-sdk>=0.26,<0.27")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream: Any = self._rerun.RecordingStream("vla_opt_deploy")
        self._stream.save(str(path))
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="rerun-log", daemon=True)
        self._thread.start()

    def on_tick(self, tick: Tick) -> None:
        """See `Watcher`."""
        self._jobs.put(lambda: self._log_tick(tick))

    def on_note(self, time_s: float, text: str) -> None:
        """See `Watcher`."""
        self._jobs.put(lambda: self._log(time_s, "notes", self._rerun.TextLog(text)))

    def on_pictures(self, time_s: float, pictures: Pictures) -> None:
        """See `Watcher`."""
        self._jobs.put(lambda: self._log_pictures(time_s, pictures))

    def close(self) -> None:
        """Write what is left."""
        self._jobs.put(None)
        self._thread.join(30.0)
        self._stream.flush(timeout_sec=30.0)
        self._stream.disconnect()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # whatever rerun raises, the episode goes on
                logger.exception("rerun could not log")
                return

    def _log(self, time_s: float, name: str, value: Any) -> None:
        self._stream.set_time(_TIME_LINE, duration=time_s)
        self._stream.log(name, value)

    def _log_tick(self, tick: Tick) -> None:
        scalars = self._rerun.Scalars
        self._log(tick.time_s, "state", self._rerun.TextLog(tick.state.value))
        if tick.action is not None:
            self._log(tick.time_s, "action", scalars(tick.action))
        if tick.latency_s is not None:
            self._log(tick.time_s, "latency_ms", scalars([1e3 * tick.latency_s]))
        count = len(tick.info.get(INTERVENTIONS) or ())
        self._log(tick.time_s, "interventions", scalars([count]))
        joints = (tick.info.get("robot_state") or {}).get("joint_positions")
        if joints is not None:
            self._log(tick.time_s, "joints", scalars(np.asarray(joints, float)))

    def _log_pictures(self, time_s: float, pictures: Pictures) -> None:
        for key, picture in pictures.views.items():
            self._log(time_s, key, self._rerun.Image(picture).compress(jpeg_quality=80))
