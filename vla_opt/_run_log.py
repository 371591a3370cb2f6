"""The log of a training run: JSON lines are the record, TensorBoard is a view of them."""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vla_opt.io import Row, append_jsonl, filter_jsonl, read_jsonl
from vla_opt.provenance import utc_now

logger = logging.getLogger(__name__)

LOG = "log.jsonl"
WARNINGS = "warnings.jsonl"
TIMING_KEYS = frozenset(
    {
        *("samples_per_s", "tokens_per_s", "step_s", "optimizer_s", "data_s", "wall_s"),
        "peak_memory_bytes",
    }
)
"""Keys of a row that differ between two runs of the same work; all others repeat bit for bit."""


class RunLog:
    """Appends rows to `log.jsonl` and mirrors their numbers to TensorBoard.

    Args:
        folder: Folder of the training run.
        step: The step the run goes on from. Rows of later steps are what an interrupted run wrote
            after its last checkpoint: they are dropped, as those steps are done again.
        tensorboard: Whether to mirror.
        enabled: False on all processes but the main one: nothing is written.
    """

    def __init__(
        self, folder: Path, step: int, *, tensorboard: bool = True, enabled: bool = True
    ) -> None:
        self._folder, self._enabled, self._writer = folder, enabled, None
        if not enabled:
            return
        filter_jsonl(folder / LOG, lambda row: int(row["step"]) <= step)
        if tensorboard:
            self._writer = _writer(folder / "tensorboard", step)

    def append(self, row: Mapping[str, Any]) -> None:
        """Store one row; it has at least `kind` and `step`."""
        if not self._enabled:
            return
        append_jsonl(self._folder / LOG, row)
        if self._writer is not None:
            for name, value in _scalars(row):
                self._writer.add_scalar(name, value, row["step"])

    def warn(self, step: int, message: str, **details: object) -> None:
        """Tell about an event of this process (a damaged checkpoint, another thread count)."""
        if self._enabled:
            logger.warning("step %d: %s", step, message)
            row = {"step": step, "time": utc_now(), "message": message, **details}
            append_jsonl(self._folder / WARNINGS, row)

    def has(self, kind: str, step: int) -> bool:
        """Whether a row of this kind and step is stored."""
        rows = read_jsonl(self._folder / LOG) if self._enabled else []
        return any(row["kind"] == kind and row["step"] == step for row in rows)

    def __enter__(self) -> Self:
        """Return the log."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Flush what TensorBoard has buffered."""
        if self._writer is not None:
            self._writer.close()


def comparable(rows: list[Row]) -> list[Row]:
    """Return rows without what a clock decides, to compare two runs."""
    return [{key: row[key] for key in row if key not in TIMING_KEYS} for row in rows]


def _writer(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _scalars(row: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Numbers of a row with a name each, nested ones joined by slashes."""
    found = []
    prefix = prefix or str(row["kind"])
    for key, value in row.items():
        if key in ("kind", "step") or isinstance(value, (bool, str)):
            continue
        if isinstance(value, Mapping):
            found += _scalars(value, f"{prefix}/{key}")
        elif isinstance(value, (int, float)):
            found.append((f"{prefix}/{key}", float(value)))
    return found
