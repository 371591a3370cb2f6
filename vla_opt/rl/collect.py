"""Gathering groups of episodes until enough of them have something to teach."""

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from envs.pool import Outcome
from envs.rollout import EpisodeKey
from envs.standing_pool import StandingPool
from vla_opt.rl.advantages import has_signal
from vla_opt.rl.config import RolloutsConfig
from vla_opt.rl.trajectories import RolloutItem, Trajectory

logger = logging.getLogger(__name__)

_HOPELESS = 4  # episodes in a row that end in errors before the run gives up


class RolloutError(RuntimeError):
    """Episodes cannot be run at all."""


@dataclass(frozen=True, kw_only=True)
class EpisodeNote:
    """An episode as the log has it."""

    group: int
    member: int
    task_id: int
    outcome: str
    steps: int
    decisions: int
    version: int
    retries: int
    wall_s: float


@dataclass(kw_only=True)
class Harvest:
    """What was gathered for one update.

    Attributes:
        chosen: episodes to learn from, group by group.
        leftover: good ones beyond what was asked for.
        notes: one per episode that was run.
        groups: groups that were run.
        all_failed: of those, groups without a success.
        all_succeeded: of those, groups without a failure.
        refused: episodes dropped because older weights had acted.
        next_group: the first number not used yet.
    """

    chosen: list[Trajectory] = field(default_factory=list)
    leftover: list[Trajectory] = field(default_factory=list)
    notes: list[EpisodeNote] = field(default_factory=list)
    groups: int = 0
    all_failed: int = 0
    all_succeeded: int = 0
    refused: int = 0
    next_group: int = 0

    @property
    def successes(self) -> int:
        """Episodes run now that reached the goal."""
        return sum(note.outcome == "success" for note in self.notes)

    @property
    def scored(self) -> int:
        """Episodes run now that did not end in an error of the machinery."""
        return sum(note.outcome != "error" for note in self.notes)


class Collector:
    """Asks a pool of workers for groups.

    Args:
        config: how many.
        pool: runs `RolloutItem`s to `Trajectory`s.
        progress: called after each episode, with whether it succeeded.
    """

    def __init__(
        self,
        config: RolloutsConfig,
        pool: StandingPool,
        progress: Callable[[bool], None] = lambda success: None,
    ) -> None:
        self._config, self._pool, self._progress = config, pool, progress

    def collect(
        self, version: int, next_group: int, leftover: Sequence[Trajectory] = ()
    ) -> Harvest:
        """Gather episodes for an update.

        Args:
            version: of the weights that shall act.
            next_group: number of the first new group.
            leftover: good groups of earlier updates.

        Raises:
            RolloutError: the first episodes all ended in errors.
        """
        config, harvest = self._config, Harvest(next_group=next_group)
        good = self._usable(leftover, version, harvest)
        for _ in range(config.max_rounds):
            if len(good) >= config.groups:
                break
            found = self._round(version, harvest)
            good += self._with_signal(found, harvest)
        harvest.chosen = [t for group in good[: config.groups] for t in group]
        harvest.leftover = [t for group in good[config.groups :] for t in group]
        return harvest

    def _usable(
        self, leftover: Sequence[Trajectory], version: int, harvest: Harvest
    ) -> list[list[Trajectory]]:
        """Groups of older weights, unless they are too old or refused."""
        config, good = self._config, []
        for group in _by_group(leftover):
            age = version - group[0].version
            if age == 0 or (config.on_stale == "correct" and age <= config.max_staleness):
                good.append(group)
            else:
                harvest.refused += len(group)
        return good

    def _round(self, version: int, harvest: Harvest) -> list[list[Trajectory]]:
        first = harvest.next_group
        items = [
            RolloutItem(key=self._key(group, member), version=version)
            for group in range(first, first + self._config.groups)
            for member in range(self._config.group_size)
        ]
        harvest.next_group += self._config.groups
        found, notes, errors = [], [], 0
        with contextlib.closing(self._pool(items)) as outcomes:
            for outcome in outcomes:
                errors = errors + 1 if outcome.error else 0
                if errors == _HOPELESS:
                    raise RolloutError(
                        f"{_HOPELESS} episodes in a row ended in errors. The last one:\n"
                        f"{outcome.error}"
                    )
                notes.append(_note(outcome))
                if outcome.result is not None:
                    found.append(outcome.result)
                    self._progress(outcome.result.success)
        # whichever came first: the order must not depend on who was faster
        harvest.notes += sorted(notes, key=lambda note: (note.group, note.member))
        return _by_group(found)

    def _key(self, group: int, member: int) -> EpisodeKey:
        tasks = self._config.task_ids
        return EpisodeKey(
            suite=self._config.suite,
            task_id=tasks[group % len(tasks)],
            init_state=group,
            trial=member,
        )

    def _with_signal(
        self, groups: list[list[Trajectory]], harvest: Harvest
    ) -> list[list[Trajectory]]:
        good = []
        for group in groups:
            harvest.groups += 1
            rewards = torch.tensor([t.reward for t in group])
            if len(group) > 1 and bool(has_signal(rewards, torch.zeros_like(rewards)).any()):
                good.append(group)
            elif rewards.max() == 0:
                harvest.all_failed += 1
            else:
                harvest.all_succeeded += 1
        return good


def _by_group(trajectories: Sequence[Trajectory]) -> list[list[Trajectory]]:
    groups: dict[int, list[Trajectory]] = defaultdict(list)
    for trajectory in sorted(trajectories, key=lambda t: (t.group, t.key.trial)):
        groups[trajectory.group].append(trajectory)
    return list(groups.values())


def _note(outcome: Outcome) -> EpisodeNote:
    key, result = outcome.item.key, outcome.result
    if result is None:
        logger.warning("%s was not run: %s", key, outcome.error)
    verdict = "error" if result is None else ("success" if result.success else "failure")
    return EpisodeNote(
        group=key.init_state,
        member=key.trial,
        task_id=key.task_id,
        outcome=verdict,
        steps=result.steps if result else 0,
        decisions=result.decisions if result else 0,
        version=outcome.item.version,
        retries=outcome.retries,
        wall_s=round(result.wall_s, 3) if result else 0.0,
    )
