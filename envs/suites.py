"""One way to name a task, whether it is LIBERO's, LIBERO-Plus's, or generated here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from envs._perturbation import UNPERTURBED, Perturbation
from envs._suite_names import PLUS, STYLE
from envs.errors import UnknownNameError, nearest
from envs.tasks import SUITES, Task, get_task

VARIANT_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


@dataclass(frozen=True, kw_only=True)
class VariantOptions:
    """How variants of LIBERO's tasks are run.

    Attributes:
        assets: LIBERO-Plus's own assets folder; the environment variable `LIBERO_PLUS_ASSETS` if
            not given.
        labels: LIBERO-Plus's `task_classification.json`, with its difficulty labels; the
            environment variable `LIBERO_PLUS_LABELS`, or the file beside the assets, if not given.
        published_compat: run LIBERO-Plus as published: the robot's initial posture is written over
            by the fixed initial state and reached in part at best, and the instruction is the
            task's file name.
    """

    assets: Path | None = None
    labels: Path | None = None
    published_compat: bool = False


DEFAULT_VARIANTS = VariantOptions()


@dataclass(frozen=True, kw_only=True)
class ResolvedTask:
    """A task that can be built.

    Attributes:
        task: definition, initial states, instruction.
        perturbation: what it changes beside them.
        scene_key: tasks of equal keys share one compiled scene.
    """

    task: Task
    perturbation: Perturbation
    scene_key: tuple[str, ...]


def resolve(suite: str, task_id: int, options: VariantOptions = DEFAULT_VARIANTS) -> ResolvedTask:
    """Find a task by suite and index.

    Raises:
        LiberoPlusError: it needs what is not on this machine; the message says what.
        UnknownNameError: no such suite or index; names the nearest.
    """
    family, _, bare = suite.partition("/")
    if family == PLUS and bare:
        from envs.libero_plus import find_plus, get_variant

        variant = get_variant(bare, task_id, files=find_plus(options.assets, options.labels))
        return ResolvedTask(
            task=variant.task(published_compat=options.published_compat),
            perturbation=variant.perturbation(published_compat=options.published_compat),
            scene_key=variant.scene_key,
        )
    if family == STYLE and bare:
        from envs.libero_style import get_style_variant

        style = get_style_variant(bare, task_id)
        return ResolvedTask(
            task=style.task(), perturbation=style.perturbation(), scene_key=style.scene_key
        )
    if suite not in SUITES:
        raise unknown_suite(suite)
    task = get_task(suite, task_id)
    return ResolvedTask(task=task, perturbation=UNPERTURBED, scene_key=(suite, task.name))


def expand_suites(names: tuple[str, ...]) -> tuple[str, ...]:
    """Replace "libero_plus" and "libero_style" by their suites; drop repetitions.

    Raises:
        UnknownNameError: no such suite; names the nearest.

    >>> expand_suites(("libero_plus",))[0]
    'libero_plus/libero_spatial'
    """
    suites: list[str] = []
    for name in names:
        if name in (PLUS, STYLE):
            suites += [f"{name}/{suite}" for suite in VARIANT_SUITES]
        elif name in known_suites():
            suites.append(name)
        else:
            raise unknown_suite(name)
    return tuple(dict.fromkeys(suites))


def known_suites() -> tuple[str, ...]:
    """Every suite that an environment can be built for."""
    variants = (f"{family}/{suite}" for family in (PLUS, STYLE) for suite in VARIANT_SUITES)
    return (*SUITES, *variants)


def unknown_suite(name: str) -> UnknownNameError:
    """The error for a suite that does not exist."""
    return UnknownNameError(f"unknown suite {name!r}. {nearest(name, known_suites())}")
