"""What a training run tells while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vla_opt.io import Row

if TYPE_CHECKING:
    from vla_opt._session import Session


class Reporter:
    """Told about a run on its main process; this one is silent. Override what is wanted."""

    def started(self, session: Session) -> None:
        """Everything is built; the first update comes next."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """Work beside the updates, such as "encoding frames", has come so far."""

    def stepped(self, step: int, loss: float) -> None:
        """An update was made."""

    def logged(self, row: Row) -> None:
        """A row was appended to the log."""
