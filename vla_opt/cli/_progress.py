"""A progress bar with a running k/n and the time left; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import IO, Never, Self

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts steps of a known number, and successes among them if there are any.

    Args:
        total: How many steps there are in all, those done in an earlier run included.
        description: What is being done, in one or two words.
        initial: Steps done in an earlier run; they do not count for the speed.
        unit: What one step is called.
        stream: Where to write; standard error by default.
    """

    def __init__(
        self,
        total: int,
        description: str,
        *,
        initial: int = 0,
        unit: str = "it",
        stream: IO[str] | None = None,
    ) -> None:
        self.total, self.description, self.initial, self.unit = total, description, initial, unit
        self.done, self.judged, self.successes, self.note = initial, 0, 0, ""
        self._stream = stream or sys.stderr
        self._start = self._last_line = time.monotonic()
        self._written: tuple[object, ...] = ()
        self._bar: tqdm[Never] | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total, desc=description, initial=initial, unit=unit, file=self._stream
            )

    def __enter__(self) -> Self:
        """Start counting."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the last line."""
        self.close()

    def update(self, steps: int = 1, *, success: bool | None = None, note: str = "") -> None:
        """Count ``steps`` more.

        Args:
            steps: How many were done.
            success: Whether what was done succeeded; None if that has no meaning here.
            note: Shown behind the count, for example ``"loss 0.041"``.
        """
        self.done += steps
        self.note = note or self.note
        if success is not None:
            self.judged += steps
            self.successes += steps * success
        self._show()

    def advance_to(self, done: int, *, success: bool | None = None, note: str = "") -> None:
        """Count up to ``done`` steps in all.

        Args:
            done: Steps done by now.
            success: Whether one more attempt succeeded, which need not have moved the count.
            note: Shown behind the count.
        """
        if success is not None:
            self.seed_counts(self.successes + success, self.judged + 1)
        self.update(done - self.done, note=note)

    def seed_counts(self, successes: int, judged: int) -> None:
        """Take over the k/n of an earlier run."""
        self.successes, self.judged = successes, judged

    def close(self) -> None:
        """Write the final state once."""
        if self._bar is not None:
            self._bar.close()
        elif self._written != self._state():
            self._write_line()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(self._postfix(), refresh=False)
            self._bar.update(self.done - self._bar.n)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._write_line()

    def _postfix(self) -> str:
        rate = f"{self.successes}/{self.judged} ok" if self.judged else ""
        return ", ".join(filter(None, (rate, self.note)))

    def _state(self) -> tuple[object, ...]:
        return self.done, self.judged, self.successes, self.note

    def _write_line(self) -> None:
        self._written = self._state()
        elapsed = time.monotonic() - self._start
        fresh = self.done - self.initial
        left = elapsed / fresh * (self.total - self.done) if fresh else float("nan")
        times = f"{clock(elapsed)} so far" + (f", {clock(left)} left" if left > 0 else "")
        detail = "; ".join(filter(None, (self._postfix(), times)))
        line = f"{self.description}: {self.done}/{self.total} {self.unit} ({detail})"
        print(line, file=self._stream, flush=True)


class Bars:
    """One bar after the other: a new one whenever the name of what is done changes."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._name = ""

    def __enter__(self) -> Self:
        """Start without a bar."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the last bar."""
        self._close()

    def get(self, name: str, total: int, *, initial: int = 0, unit: str = "it") -> Progress:
        """The bar of that name; the one before ends if it had another.

        Args:
            name: What is being done.
            total: Of how many steps.
            initial: Steps done in an earlier run, if the bar is new.
            unit: What one step is called.
        """
        if self._bar is None or name != self._name:
            self._close()
            self._name = name
            self._bar = progress(total, name, initial=initial, unit=unit)
        return self._bar

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


def progress(total: int, description: str, *, initial: int = 0, unit: str = "it") -> Progress:
    """A :class:`Progress` on standard error: ``with progress(80, "demos") as bar: ...``."""
    return Progress(total, description, initial=initial, unit=unit)


def clock(seconds: float) -> str:
    """Seconds as a person reads them.

    >>> clock(7.4), clock(75), clock(3725)
    ('7 s', '1:15 min', '1:02 h')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
