"""Every control tick as a line of JSON, written by a thread: the control loop never waits."""

from __future__ import annotations

import json
import logging
import queue
import threading
from pathlib import Path
from typing import Any

import numpy as np

from deploy.interfaces import INTERVENTIONS, Pictures, Tick

logger = logging.getLogger(__name__)


class TickLog:
    """A watcher that writes `ticks.jsonl`. A disk that fills ends the log, never the episode.

    Args:
        path: Of the file; made anew.

    Raises:
        OSError: It cannot be made.

    Attributes:
        error: Why not everything could be written; empty if it was.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.error = ""
        self._file = path.open("w", encoding="utf-8")
        self._rows: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="tick-log", daemon=True)
        self._thread.start()

    def on_tick(self, tick: Tick) -> None:
        """See `Watcher`."""
        self._rows.put(
            {
                "time_s": round(tick.time_s, 6),
                "step": tick.step,
                "state": tick.state.value,
                "action": None if tick.action is None else tick.action.tolist(),
                "joints": _joints(tick),
                "interventions": sorted(map(str, tick.info.get(INTERVENTIONS) or ())),
                "observed": tick.frame is not None,
                "latency_s": tick.latency_s,
            }
        )

    def on_note(self, time_s: float, text: str) -> None:
        """See `Watcher`."""
        self._rows.put({"time_s": round(time_s, 6), "note": text})

    def on_pictures(self, time_s: float, pictures: Pictures) -> None:
        """See `Watcher`; pictures are not kept here."""

    def close(self) -> None:
        """Write what is left."""
        self._rows.put(None)
        self._thread.join(10.0)

    def _write(self) -> None:
        try:
            with self._file:
                while (row := self._rows.get()) is not None:
                    self._file.write(json.dumps(row) + "\n")
                    if self._rows.empty():
                        self._file.flush()
        except OSError as error:
            self.error = f"{self.path} could not be written on: {error.strerror or error}"
            logger.error(self.error)


def _joints(tick: Tick) -> list[float] | None:
    state = tick.info.get("robot_state") or {}
    found = state.get("joint_positions")
    return None if found is None else np.asarray(found, float).tolist()
