"""The 130 LIBERO tasks: names, instructions, definition files and fixed initial states."""

from __future__ import annotations

import functools
import importlib.util
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from envs._libero_setup import libero_root
from envs._suite_names import STEP_LIMITS
from envs.errors import UnknownNameError, nearest

SUITES: dict[str, int] = STEP_LIMITS
"""Suite -> episode limit in control steps."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One LIBERO task.

    Attributes:
        suite: name of the suite, e.g. "libero_object".
        task_id: index within the suite, from 0.
        name: file stem of its definition.
        language: the instruction, as LIBERO derives it from the name.
        bddl_file: goal, objects and placement regions.
        init_states_file: the fixed initial states (50 for each task).
        max_steps: episode limit in control steps after settling.
    """

    suite: str
    task_id: int
    name: str
    language: str
    bddl_file: Path
    init_states_file: Path
    max_steps: int


@functools.cache
def list_tasks(suite: str) -> tuple[Task, ...]:
    """All tasks of a suite in LIBERO's order.

    Raises:
        UnknownNameError: no such suite; the message names the nearest one.

    >>> list_tasks("libero_object")[0].language
    'pick up the alphabet soup and place it in the basket'
    """
    if suite not in SUITES:
        raise UnknownNameError(f"unknown suite {suite!r}. {nearest(suite, SUITES)}")
    return tuple(_task(suite, k, name) for k, name in enumerate(_task_map()[suite]))


def get_task(suite: str, task_id: int) -> Task:
    """One task by its index.

    Raises:
        UnknownNameError: no such suite, or the index is out of range.
    """
    tasks = list_tasks(suite)
    if not 0 <= task_id < len(tasks):
        raise UnknownNameError(
            f"{suite} has tasks 0 to {len(tasks) - 1}, but task_id={task_id} was asked for."
        )
    return tasks[task_id]


def load_init_states(task: Task) -> NDArray[np.float64]:
    """The fixed initial states of a task, shape (states, 1 + nq + nv): time, qpos, qvel.

    The files are torch archives whose payload is a plain pickled numpy array, so they are read
    without torch.
    """
    with zipfile.ZipFile(task.init_states_file) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        states = pickle.loads(archive.read(name))
    return np.atleast_2d(np.asarray(states, dtype=np.float64))


def _task(suite: str, task_id: int, name: str) -> Task:
    root = libero_root()
    return Task(
        suite=suite,
        task_id=task_id,
        name=name,
        language=_language(name),
        bddl_file=root / "bddl_files" / suite / f"{name}.bddl",
        init_states_file=root / "init_files" / suite / f"{name}.pruned_init",
        max_steps=SUITES[suite],
    )


def _language(name: str) -> str:
    """LIBERO-90 and -10 names start with the scene, e.g. KITCHEN_SCENE10_close_the_drawer."""
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", name).replace("_", " ")


@functools.cache
def _task_map() -> dict[str, list[str]]:
    """Loads the task lists from their own file: the package around it imports torch."""
    path = libero_root() / "benchmark" / "libero_suite_task_map.py"
    spec = importlib.util.spec_from_file_location("_libero_suite_task_map", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    task_map: dict[str, list[str]] = module.libero_task_map
    return task_map
