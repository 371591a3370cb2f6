"""Counts what an import keeps and leaves out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_opt._episode import Episode
from vla_opt.errors import DataError


@dataclass(kw_only=True)
class Tally:
    """What came of the episodes so far.

    Attributes:
        episodes: Written.
        frames: Written.
        noops: Steps left out because they command nothing.
        skipped: Episodes left out, with the reason.
    """

    episodes: int = 0
    frames: int = 0
    noops: int = 0
    skipped: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "skipped": list(self.skipped)}


Read = Callable[[], Episode]
"""Reads one episode; raises `DataError` if it is broken."""


def select(episode: Episode, rows: NDArray[np.int64], tally: Tally, where: str) -> Episode:
    """The episode with these rows alone.

    Raises:
        DataError: None is left.
    """
    tally.noops += len(episode) - len(rows)
    if len(rows) == 0:
        raise DataError(f"{where} holds nothing but no-ops")
    if len(rows) == len(episode):
        return episode
    return Episode(
        frames={name: frames[rows] for name, frames in episode.frames.items()},
        state=episode.state[rows],
        action=episode.action[rows],
        task=episode.task,
        meta=episode.meta,
    )


def counted(
    readers: Iterable[Read], tally: Tally, *, limit: int = 0, skip_broken: bool = False
) -> Iterator[Episode]:
    """Read episodes one at a time, and count them.

    Args:
        readers: One per episode.
        tally: Added to.
        limit: Stop after so many; 0 = never.
        skip_broken: Leave out those that cannot be read.

    Raises:
        DataError: One cannot be read.
    """
    for read in readers:
        if limit and tally.episodes == limit:
            return
        try:
            episode = read()
        except DataError as error:
            if not skip_broken:
                raise
            tally.skipped.append(str(error))
            continue
        tally.episodes += 1
        tally.frames += len(episode)
        yield episode
