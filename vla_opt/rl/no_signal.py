"""What becomes of a run whose groups all succeed or all fail: nothing can be learned from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vla_opt._checks import require_at_least

if TYPE_CHECKING:
    from vla_opt.rl.collect import Harvest

_TOO_HARD = (
    "Lower --exploration.std or --exploration.correlation, give episodes more "
    "--rollouts.max_steps, or start from a better checkpoint"
)
_TOO_EASY = "Raise --exploration.std, choose harder --rollouts.task_ids, or be content"
_TOO_ALIKE = "Raise --rollouts.group_size, so that members of a group differ"


class NoSignalError(RuntimeError):
    """Too many updates in a row without a group to learn from."""


@dataclass(frozen=True, kw_only=True)
class NoSignalConfig:
    """What to do after updates without a group whose episodes differ in success.

    Attributes:
        stop_after: Such updates in a row that end the run; 0 = it goes on to its last update.
        rescale: Exploration is divided by this after such an update if all groups failed, and
            multiplied if all succeeded; 1 = it stays as configured.

    Raises:
        ValueError: A number is out of range.
    """

    stop_after: int = 3
    rescale: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        require_at_least("stop_after", self.stop_after, 0)
        require_at_least("rescale", self.rescale, 1.0)

    def factor(self, harvest: Harvest) -> float:
        """Return what exploration is multiplied by after groups none of which had a signal."""
        if harvest.all_succeeded and harvest.all_failed:
            return 1.0
        return 1 / self.rescale if harvest.all_failed else self.rescale

    def check(self, silent: int, harvest: Harvest) -> None:
        """Stop where there is nothing to hope for.

        Args:
            silent: updates in a row, up to now, without a signal.
            harvest: of the last of them.

        Raises:
            NoSignalError: there were `stop_after` of them.
        """
        if not self.stop_after or silent < self.stop_after:
            return
        failed, succeeded, groups = harvest.all_failed, harvest.all_succeeded, harvest.groups
        advice = _TOO_ALIKE
        if not (failed and succeeded):
            advice = _TOO_HARD if failed else _TOO_EASY
        raise NoSignalError(
            f"{silent} updates in a row had no group with a success and a failure to compare (of "
            f"the last {groups} groups {failed} failed and {succeeded} succeeded altogether): no "
            f"weight moved. {advice}; or let --no_signal.rescale=1.5 look for an exploration that "
            "divides the groups. --no_signal.stop_after=0 goes on all the same."
        )
