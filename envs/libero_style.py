"""Generated perturbations of LIBERO's tasks: light, background textures, added objects.

LIBERO-Plus's tasks of these three kinds need assets that cannot be downloaded without a hub. These
here are made from LIBERO's own assets and are a benchmark of their own: their suites are called
`libero_style/...`, and no table counts them as LIBERO-Plus.

Each LIBERO task has, per dimension, five levels with `SAMPLES` variants each; everything in one is
drawn from its name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from dataclasses import dataclass

from envs._perturbation import Perturbation
from envs._style_objects import (
    AddedDistractors,
    Distractors,
    choose_distractors,
    with_distractors,
)
from envs._style_scene import StyleBackground, StyleLight
from envs._suite_names import STYLE
from envs.errors import UnknownNameError, nearest
from envs.suites import VARIANT_SUITES
from envs.tasks import Task, list_tasks

__all__ = [
    "DIMENSIONS",
    "LEVELS",
    "PREFIX",
    "SAMPLES",
    "SUITES",
    "StyleVariant",
    "get_style_variant",
    "list_style_variants",
]

PREFIX = f"{STYLE}/"
SUITES = VARIANT_SUITES
SAMPLES = 4
LEVELS = (1, 2, 3, 4, 5)
DIMENSIONS: dict[str, str] = {
    "light": "brightness, colour and direction of the lights; shadows at level 5",
    "background": "textures of wall, floor and table; checkerboards at level 5",
    "objects": "as many more objects on the table as the level says",
}


@dataclass(frozen=True, kw_only=True)
class StyleVariant:
    """One generated variant.

    Attributes:
        suite: the LIBERO suite.
        task_id: index within the suite's variants, from 0.
        base: the LIBERO task it is a variant of.
        dimension: key of `DIMENSIONS`.
        level: size of the perturbation, 1 to 5.
        sample: one of `SAMPLES` of that size.
    """

    suite: str
    task_id: int
    base: Task = dataclasses.field(repr=False)
    dimension: str
    level: int
    sample: int

    @property
    def name(self) -> str:
        """Unique within the suite."""
        return f"{self.base.name}_style_{self.dimension}_{self.level}_{self.sample}"

    @property
    def difficulty(self) -> int:
        """The level."""
        return self.level

    @property
    def magnitude(self) -> int:
        """The level."""
        return self.level

    @property
    def language(self) -> str:
        """The LIBERO task's instruction."""
        return self.base.language

    @property
    def runnable(self) -> bool:
        """Always: LIBERO's own assets are all it needs."""
        return True

    @property
    def env_suite(self) -> str:
        """The suite's name in environments and records: "libero_style/libero_object"."""
        return PREFIX + self.suite

    @property
    def scene_key(self) -> tuple[str, ...]:
        """Variants of equal keys share one compiled scene."""
        return (self.suite, self.base.name if self.dimension == "light" else self.name)

    @property
    def seed(self) -> int:
        """31 bits of the sha256 of suite and name."""
        digest = hashlib.sha256(f"{self.env_suite}/{self.name}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    def task(self) -> Task:
        """The task as an environment needs it."""
        task = dataclasses.replace(
            self.base, suite=self.env_suite, task_id=self.task_id, name=self.name
        )
        if self.dimension != "objects":
            return task
        definition = with_distractors(self.base.bddl_file, self._distractors, self.name)
        return dataclasses.replace(task, bddl_file=definition)

    def perturbation(self) -> Perturbation:
        """What it changes beside the definition."""
        if self.dimension == "light":
            return StyleLight(self.level, self.seed)
        if self.dimension == "background":
            return StyleBackground(self.level, self.seed)
        return AddedDistractors(self._distractors)

    @functools.cached_property
    def _distractors(self) -> Distractors:
        import numpy as np

        rng = np.random.RandomState(self.seed)
        return choose_distractors(self.base.bddl_file, self.level, rng)


def list_style_variants(
    suite: str | None = None, *, dimension: str | None = None, level: int | None = None
) -> tuple[StyleVariant, ...]:
    """List the generated variants; 600 per suite.

    Args:
        suite: only those of this suite, with or without `PREFIX`.
        dimension: only those of this dimension.
        level: only those of this level, 1 to 5.

    Raises:
        UnknownNameError: no such suite, dimension or level; names the nearest.
    """
    if dimension is not None and dimension not in DIMENSIONS:
        raise UnknownNameError(
            f"unknown {STYLE} dimension {dimension!r}. {nearest(dimension, DIMENSIONS)}"
        )
    if level is not None and level not in LEVELS:
        raise UnknownNameError(f"unknown level {level}: {STYLE} has 1 to 5.")
    suites = SUITES if suite is None else (_known_suite(suite),)
    return tuple(
        variant
        for name in suites
        for variant in _variants(name)
        if dimension in (None, variant.dimension) and level in (None, variant.level)
    )


def get_style_variant(suite: str, task_id: int) -> StyleVariant:
    """Return one variant by its index.

    Raises:
        UnknownNameError: no such suite or index.
    """
    variants = _variants(_known_suite(suite))
    if not 0 <= task_id < len(variants):
        raise UnknownNameError(
            f"{PREFIX}{suite.removeprefix(PREFIX)} has tasks 0 to {len(variants) - 1}, but "
            f"task_id={task_id} was asked for."
        )
    return variants[task_id]


def _known_suite(suite: str) -> str:
    bare = suite.removeprefix(PREFIX)
    if bare not in SUITES:
        raise UnknownNameError(f"unknown {STYLE} suite {suite!r}. {nearest(bare, SUITES)}")
    return bare


@functools.cache
def _variants(suite: str) -> tuple[StyleVariant, ...]:
    kinds = [
        (base, dimension, level, sample)
        for base in list_tasks(suite)
        for dimension in DIMENSIONS
        for level in LEVELS
        for sample in range(SAMPLES)
    ]
    return tuple(
        StyleVariant(
            suite=suite, task_id=k, base=base, dimension=dimension, level=level, sample=sample
        )
        for k, (base, dimension, level, sample) in enumerate(kinds)
    )
