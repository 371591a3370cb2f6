"""What a LIBERO task asks for, as steps that a scripted demonstrator can take one by one."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from envs._libero_setup import import_libero
from envs.tasks import Task

PLACED = ("in", "on")
OPENED, CLOSED = "open", "close"
TURNED = ("turnon", "turnoff")
_DRAWERS = ("top_region", "middle_region", "bottom_region")
_COVERED = "heating_region"  # inside a microwave


class UnsupportedTaskError(ValueError):
    """No scripted demonstrator exists for the task."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One step of a task.

    Attributes:
        predicate: LIBERO's: "in", "on", "open", "close", "turnon" or "turnoff".
        item: the object to place; of the other predicates the region or the object that has the
            joint.
        target: where to place it, an object or a region; empty for the other predicates.
        beside: another object that must find room on the same region; empty if there is none.
        slide: whether the object shall stay on its support on the way ("push the plate ...").
    """

    predicate: str
    item: str
    target: str = ""
    beside: str = ""
    slide: bool = False

    @property
    def state(self) -> list[str]:
        """As LIBERO's predicate evaluation takes it."""
        return [name for name in (self.predicate, self.item, self.target) if name]


def parse_goals(problem: dict[str, Any]) -> tuple[Goal, ...]:
    """The steps of a parsed bddl problem in the order in which they are to be taken.

    Joints come first, then what is placed; a drawer is shut after what goes into it.

    Args:
        problem: `parsed_problem` of LIBERO's environment: keys "goal_state", "initial_state" and
            "language_instruction".

    Raises:
        UnsupportedTaskError: doors to open, what lies behind one, and drawers that the task fills
            without saying that they are to be opened; the message names it.
    """
    words = problem["language_instruction"]
    verb = (words if isinstance(words, str) else " ".join(words)).split()[0].lower()
    initial = [list(state) for state in problem["initial_state"]]
    wanted = [_goal(state, slide=verb == "push") for state in problem["goal_state"]]
    filled = {goal.target for goal in wanted if goal.predicate == "in"}
    opened = {state[1] for state in initial if state[0] == OPENED}
    opened |= {goal.item for goal in wanted if goal.predicate == OPENED}
    for name in filled - opened:
        if _is_drawer(name):
            raise UnsupportedTaskError(
                f"{name} is not open at the start, and what goes in may stand below it."
            )
    wanted = [_with_neighbour(goal, wanted) for goal in wanted]
    return tuple(sorted(wanted, key=lambda goal: _rank(goal, filled)))


def task_goals(task: Task) -> tuple[Goal, ...]:
    """The steps of a task, read from its definition without building a simulation.

    Raises:
        UnsupportedTaskError: as `parse_goals`, naming the task.
    """
    import_libero()
    parser = importlib.import_module("libero.libero.envs.bddl_utils")
    try:
        return parse_goals(parser.robosuite_parse_problem(str(task.bddl_file)))
    except UnsupportedTaskError as error:
        raise UnsupportedTaskError(
            f"{task.suite} task {task.task_id} ({task.language}): {error}"
        ) from error


def _with_neighbour(goal: Goal, goals: Sequence[Goal]) -> Goal:
    """Objects stand beside each other on a region; what is put into something may pile up."""
    shares = (
        other.item
        for other in goals
        if other.predicate == goal.predicate == "on"
        and other.target == goal.target
        and other.item != goal.item
    )
    return replace(goal, beside=next(shares, ""))


def _rank(goal: Goal, filled: set[str]) -> int:
    """Joints first, then what is placed, then what is shut over it."""
    if goal.predicate in PLACED:
        return 1
    return 2 if goal.predicate == CLOSED and goal.item in filled else 0


def _goal(state: Sequence[str], *, slide: bool) -> Goal:
    predicate, *arguments = state
    if predicate in PLACED and len(arguments) == 2:
        item, target = arguments
        if target.endswith(_COVERED):
            raise UnsupportedTaskError(f"nothing fits into {target} from above.")
        return Goal(predicate=predicate, item=item, target=target, slide=slide)
    if predicate in (OPENED, CLOSED, *TURNED) and len(arguments) == 1:
        (item,) = arguments
        if predicate == OPENED and not _is_drawer(item):
            raise UnsupportedTaskError(f"no demonstrator opens {item} (drawers only).")
        return Goal(predicate=predicate, item=item)
    raise UnsupportedTaskError(f"no demonstrator for the goal {tuple(state)!r}.")


def _is_drawer(name: str) -> bool:
    return name.endswith(_DRAWERS) and "cabinet" in name
