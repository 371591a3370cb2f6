"""Which item a free worker takes next."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass
class Entry:
    """An item on its way through the pool."""

    item: Any
    group: Hashable
    retries: int = 0


class Backlog:
    """Items that wait, in groups that should stay with one worker.

    A worker keeps its group while that has items. Then it takes the largest group nobody works on,
    and when there is none it helps the group with the most items per worker.
    """

    def __init__(self, items: Iterable[Any], affinity: Callable[[Any], Hashable]) -> None:
        self._groups: dict[Hashable, deque[Entry]] = {}
        for item in items:
            self.put(Entry(item, affinity(item)))

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._groups.values())

    def put(self, entry: Entry) -> None:
        """Add an entry behind the others of its group."""
        self._groups.setdefault(entry.group, deque()).append(entry)

    def take(self, group: Hashable, in_use: Counter[Hashable]) -> Entry | None:
        """Remove and return the entry for a worker that last worked on `group`.

        Args:
            group: the worker's group; anything else for a new worker.
            in_use: how many *other* workers are on each group.
        """
        entry = self.look(group, in_use)
        if entry is not None:
            self._groups[entry.group].popleft()
        return entry

    def look(self, group: Hashable, in_use: Counter[Hashable]) -> Entry | None:
        """Return what `take` would, and leave it there."""
        waiting = [name for name, queue in self._groups.items() if queue]
        if not waiting:
            return None
        if group not in waiting:
            # max() keeps the first of equals, so the order of the items decides ties
            group = max(waiting, key=lambda name: self._preference(name, in_use))
        return self._groups[group][0]

    def _preference(self, group: Hashable, in_use: Counter[Hashable]) -> tuple[bool, float]:
        return in_use[group] == 0, len(self._groups[group]) / (in_use[group] + 1)
