"""Attempts at demonstrations on disk, so that an interrupted generation continues where it was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs._diversity import Diversity
from envs.demonstrations import (
    EXPERT_VERSION,
    SUITE_VERSIONS,
    Demo,
    DemoKey,
    DemoOptions,
    read_recording,
)
from vla_opt._episode import Episode
from vla_opt.errors import ConfigError
from vla_opt.io import append_jsonl, atomic_write_bytes, atomic_write_json, read_jsonl


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What is remembered of an attempt besides its recording."""

    key: DemoKey
    success: bool
    steps: int
    noise: float
    reason: str
    task: str
    cpu_s: float
    manner: str = ""

    def to_row(self) -> dict[str, Any]:
        """A JSON-able row, the inverse of `from_row`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Attempt:
        """Rebuilds an attempt from its row."""
        return cls(**{**row, "key": DemoKey(**row["key"])})


def made_with(options: DemoOptions, suites: Iterable[str]) -> dict[str, Any]:
    """Everything but the key that decides what demonstrations of these suites contain."""
    made = {**dataclasses.asdict(options), "expert": EXPERT_VERSION}
    if of_suites := {name: SUITE_VERSIONS[name] for name in suites if name in SUITE_VERSIONS}:
        made["expert_of"] = of_suites
    if options.diversity == Diversity():  # as data sets say that were made before there was any
        del made["diversity"]
    return made


def fingerprint(options: DemoOptions, suites: Iterable[str]) -> str:
    """Hash of `made_with`."""
    content = json.dumps(made_with(options, suites), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class Staging:
    """A folder of attempts: `attempts.jsonl`, and one compressed npz for each that succeeded.

    Args:
        folder: where; made if missing.
        options: how the demonstrations are made.
        suites: of which tasks.

    Raises:
        ConfigError: the folder holds demonstrations that were made in another way.
    """

    def __init__(self, folder: Path, options: DemoOptions, suites: Sequence[str]) -> None:
        self.folder = folder
        self._log = folder / "attempts.jsonl"
        self._check_made_with(options, suites)
        rows = read_jsonl(self._log)
        self.attempts = {attempt.key: attempt for attempt in map(Attempt.from_row, rows)}
        lost = [k for k, a in self.attempts.items() if a.success and not self._file(k).is_file()]
        for key in lost:
            del self.attempts[key]

    def add(self, demo: Demo) -> Attempt:
        """Stores an attempt; the row comes last, so that a stored success has its recording.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        fields = {f.name: getattr(demo, f.name) for f in dataclasses.fields(Attempt)}
        attempt = Attempt(**fields)
        if demo.recording is not None:
            atomic_write_bytes(self._file(demo.key), demo.recording)
        append_jsonl(self._log, attempt.to_row())
        self.attempts[demo.key] = attempt
        return attempt

    def of_task(self, suite: str, task_id: int) -> list[Attempt]:
        """The attempts at one task, by index."""
        keys = sorted(key for key in self.attempts if key.task == (suite, task_id))
        return [self.attempts[key] for key in keys]

    def episodes(self, attempts: Iterable[Attempt]) -> Iterator[Episode]:
        """Reads recordings one after the other."""
        for attempt in attempts:
            arrays = read_recording(self._file(attempt.key).read_bytes())
            state, action = arrays.pop("state"), arrays.pop("action")
            del arrays["executed"]
            meta = {
                "key": str(attempt.key),
                "seed": attempt.key.seed,
                "noise": attempt.noise,
                "steps_to_goal": attempt.steps,
                **({"manner": attempt.manner} if attempt.manner else {}),
            }
            yield Episode(frames=arrays, state=state, action=action, task=attempt.task, meta=meta)

    def _file(self, key: DemoKey) -> Path:
        return self.folder / f"{key.suite}-{key.task_id:02d}-{key.index:05d}.npz"

    def _check_made_with(self, options: DemoOptions, suites: Sequence[str]) -> None:
        path = self.folder / "options.json"
        made = made_with(options, suites)
        wanted = {"fingerprint": fingerprint(options, suites), **made}
        if not path.is_file():
            atomic_write_json(path, wanted)
            return
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["fingerprint"] != wanted["fingerprint"]:
            raise ConfigError(
                f"{self.folder} holds demonstrations made with {found}, but {wanted} were asked "
                "for. Remove that folder or choose another --root."
            )
