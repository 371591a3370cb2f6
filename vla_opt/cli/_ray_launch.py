"""``vla-opt train --launcher=ray --workers=N``: the words that choose who starts the processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vla_opt._reporting import Reporter
from vla_opt.cli._progress import Progress, progress
from vla_opt.cli._train_printer import pace
from vla_opt.errors import ConfigError, UnknownNameError, nearest
from vla_opt.io import Row

if TYPE_CHECKING:
    from vla_opt.ray_training import RayLaunch

LAUNCHERS = ("here", "ray")
_KEYS = {"workers": "workers", "cpus_per_worker": "cpus", "restarts": "restarts"}


def split_launcher(argv: Sequence[str]) -> tuple[list[str], RayLaunch | None]:
    """Take the launcher's words out of a command.

    Args:
        argv: the words behind the verb; `--launcher`, `--workers`, `--cpus_per_worker` and
            `--restarts` are taken out, with `=` or a space before their value.

    Returns:
        The other words, and how to launch; None to train in this process.

    Raises:
        UnknownNameError: no such launcher.
        ConfigError: a number that is none or out of range, or workers without `--launcher=ray`.
    """
    rest, found = _take(argv, {"launcher", *_KEYS})
    name = found.pop("launcher", "here")
    if name not in LAUNCHERS:
        raise UnknownNameError(f"unknown launcher '{name}'.{nearest(name, LAUNCHERS)}")
    if name == "here":
        if found:
            raise ConfigError(f"--{next(iter(found))} belongs to --launcher=ray: add that.")
        return rest, None
    from vla_opt.ray_training import RayLaunch

    try:
        return rest, RayLaunch(**{_KEYS[key]: int(value) for key, value in found.items()})
    except ValueError as error:
        raise ConfigError(f"--launcher=ray: {error}") from error


def _take(argv: Sequence[str], keys: set[str]) -> tuple[list[str], dict[str, str]]:
    rest: list[str] = []
    found: dict[str, str] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        key, separator, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or key not in keys:
            rest.append(word)
            continue
        if not separator:
            if not words:
                raise ConfigError(f"--{key}: expected a value, as in --{key}=VALUE.")
            value = words.pop(0)
        found[key] = value
    return rest, found


class RowPrinter(Reporter):
    """A bar that moves with the rows of the log: workers print nothing here.

    Args:
        steps: updates in all.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._bar: Progress | None = None
        self._pace = ""

    def logged(self, row: Row) -> None:
        """Keep the throughput and memory of the row, which is shown with its step."""
        if row["kind"] == "train":
            self._pace = f", {pace(row)}"

    def stepped(self, step: int, loss: float) -> None:
        """Move the bar."""
        self._bar = self._bar or progress(self._steps, "training", unit="steps")
        self._bar.advance_to(step, note=f"loss {loss:.4f}{self._pace}")

    def close(self) -> None:
        """End the line of the bar."""
        if self._bar is not None:
            self._bar.close()
