"""Which variants of LIBERO's tasks an evaluation runs, and what they stand for."""

import dataclasses
import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs._suite_names import PLUS, STYLE
from vla_opt.errors import UnknownNameError
from vla_opt.evaluation.stratified import draw

if TYPE_CHECKING:
    from envs.libero_plus import Variant
    from envs.libero_style import StyleVariant
    from envs.suites import VariantOptions

    type AnyVariant = Variant | StyleVariant

VARIANTS_FILE = "variants.json"
FAMILIES = (PLUS, STYLE)


@dataclass(frozen=True, kw_only=True)
class VariantConfig:
    """Variants of LIBERO's tasks: which, and how they are run. Suites: libero_plus, libero_style.

    Attributes:
        dimensions: Of LIBERO-Plus: camera, robot, language, light, background, noise, layout. Of
            libero_style: light, background, objects. All if not given.
        difficulties: Only tasks of these levels, 1 to 5; all if not given. Of LIBERO-Plus they are
            its authors' labels and need their file.
        base_tasks: Only variants of the LIBERO tasks with these indices, of each suite: for a
            policy that knows no others. All if not given.
        names: Only the tasks of these names; one that cannot run is then an error.
        sample: How many tasks, drawn so that every dimension x level x suite has its share; all if
            not given. The tables weigh each outcome with the number of tasks it stands for.
        sample_seed: Another seed draws other tasks.
        assets: LIBERO-Plus's own assets folder; the environment variable LIBERO_PLUS_ASSETS if not
            given. Without it 2,985 of its 10,030 tasks cannot run, which every table says.
        labels: LIBERO-Plus's task_classification.json; the environment variable LIBERO_PLUS_LABELS,
            or the file beside the assets, if not given.
        published_compat: Run LIBERO-Plus as published: the initial state is written over the
            robot's perturbed posture, and the instruction is the task's file name.

    Raises:
        ValueError: A number is out of range.
    """

    dimensions: tuple[str, ...] | None = None
    difficulties: tuple[int, ...] | None = None
    base_tasks: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None
    sample: int | None = None
    sample_seed: int = 0
    assets: Path | None = None
    labels: Path | None = None
    published_compat: bool = False

    def __post_init__(self) -> None:
        """Check the values that need no benchmark."""
        if self.sample is not None and self.sample < 1:
            raise ValueError(f"variants.sample={self.sample}: expected 1 or more.")
        for level in self.difficulties or ():
            if level not in range(1, 6):
                raise ValueError(f"variants.difficulties has {level}: levels are 1 to 5.")

    @property
    def options(self) -> "VariantOptions":
        """What environments need to know of it."""
        from envs.suites import VariantOptions

        return VariantOptions(
            assets=self.assets, labels=self.labels, published_compat=self.published_compat
        )


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Tasks that are alike.

    Attributes:
        family: "libero_plus" or "libero_style".
        suite: The suite's name in records, for example "libero_plus/libero_object".
        dimension: What is perturbed.
        level: The benchmark's difficulty where its labels are known, else the perturbation's
            magnitude; None where neither is.
        tasks: How many were asked for.
        runnable: How many of them can run on this machine.
        planned: How many of those were drawn.
    """

    family: str
    suite: str
    dimension: str
    level: int | None
    tasks: int
    runnable: int
    planned: int


@dataclass(frozen=True, kw_only=True)
class VariantPlan:
    """The variants that an evaluation runs.

    Attributes:
        variants: Those drawn, suite by suite.
        strata: What was asked for, by stratum.
        levels: Family -> what its strata's levels are, "difficulty" or "magnitude".
    """

    variants: "tuple[AnyVariant, ...]" = ()
    strata: tuple[Stratum, ...] = ()
    levels: dict[str, str] = dataclasses.field(default_factory=dict)

    @cached_property
    def by_task(self) -> "dict[tuple[str, int], AnyVariant]":
        """Variant by suite and task as records name them."""
        return {(variant.env_suite, variant.task_id): variant for variant in self.variants}

    def notes(self) -> list[str]:
        """Sentences on what does not run, and on what the sample stands for."""
        notes = []
        for family in dict.fromkeys(stratum.family for stratum in self.strata):
            strata = [s for s in self.strata if s.family == family]
            tasks, runnable, planned = _totals(strata)
            if runnable < tasks:
                lacking = Counter[str]()
                for stratum in strata:
                    lacking[stratum.dimension] += stratum.tasks - stratum.runnable
                parts = ", ".join(f"{name} {n}" for name, n in lacking.items() if n)
                notes.append(
                    f"{family}: {tasks - runnable} of the {tasks} tasks asked for cannot run "
                    f"without the benchmark's assets ({parts}) and are in no rate: "
                    "--variants.assets=FOLDER or LIBERO_PLUS_ASSETS."
                )
            if planned < runnable:
                notes.append(
                    f"{family}: {planned} of {runnable} tasks, drawn in proportion by dimension, "
                    f"{self.levels[family]} and suite; the tables by dimension weigh each outcome "
                    "with the tasks it stands for."
                )
        return notes

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy; the inverse is `strata_from`."""
        return {
            "levels": self.levels,
            "strata": [dataclasses.asdict(stratum) for stratum in self.strata],
            "planned": [[variant.env_suite, variant.task_id] for variant in self.variants],
        }


def strata_from(data: dict[str, Any]) -> list[Stratum]:
    """Read the strata of a plan written by `VariantPlan.to_dict`.

    Raises:
        TypeError: It is no plan.
    """
    return [Stratum(**row) for row in data.get("strata", ())]


def plan_variants(
    suites: Sequence[str], task_ids: Sequence[int] | None, config: VariantConfig
) -> VariantPlan:
    """Select variants and draw the sample.

    Args:
        suites: Suites as in records; those that are no variants are passed over.
        task_ids: Only these tasks of each suite.
        config: What to select.

    Raises:
        LiberoPlusError: A task that was named cannot run, none at all can, or the definitions or
            labels are missing.
        UnknownNameError: A dimension, task, base task or name does not exist; names the nearest.
        ValueError: The sample is larger than what can run, or smaller than one per dimension.
    """
    wanted = [v for suite in suites for v in _selected(suite, task_ids, config)]
    _check_names(suites, wanted, config)
    if not wanted:
        return VariantPlan()
    runnable = [variant for variant in wanted if variant.runnable]
    refused = next((variant for variant in wanted if not variant.runnable), None)
    if refused is not None and (config.names or task_ids is not None or not runnable):
        from envs.suites import resolve

        resolve(refused.env_suite, refused.task_id, config.options)  # raises, says what it lacks
    drawn = [v for family in FAMILIES for v in _sample(_of_family(family, runnable), config)]
    return VariantPlan(
        variants=tuple(drawn),
        strata=tuple(_strata(wanted, runnable, drawn)),
        levels={family: _level_name(_of_family(family, wanted)) for family in FAMILIES},
    )


def level_of(variant: "AnyVariant") -> int | None:
    """The level that stratifies: the benchmark's label, else the magnitude."""
    return variant.magnitude if variant.difficulty is None else variant.difficulty


def _selected(
    suite: str, task_ids: Sequence[int] | None, config: VariantConfig
) -> "list[AnyVariant]":
    family, _, bare = suite.partition("/")
    if family not in FAMILIES or not bare:
        return []
    variants = _list_plus(bare, config) if family == PLUS else _list_style(bare, config)
    if task_ids is not None:
        for task_id in task_ids:
            resolve_index(suite, task_id, config)
        variants = [variant for variant in variants if variant.task_id in set(task_ids)]
    if config.base_tasks is not None:
        from envs.tasks import get_task

        for task_id in config.base_tasks:
            get_task(bare, task_id)  # refuses one that does not exist
        variants = [variant for variant in variants if variant.base.task_id in config.base_tasks]
    if config.names is not None:
        variants = [variant for variant in variants if variant.name in set(config.names)]
    if config.difficulties is not None:
        variants = [variant for variant in variants if variant.difficulty in config.difficulties]
    return variants


def _list_plus(suite: str, config: VariantConfig) -> "list[AnyVariant]":
    from envs.libero_plus import find_plus, known_dimension, list_variants

    files = find_plus(config.assets, config.labels)
    for level in config.difficulties or ():
        list_variants(suite, difficulty=level, files=files)  # refuses where labels are missing
    dimensions = {known_dimension(name) for name in config.dimensions or ()}
    return [
        variant
        for variant in list_variants(suite, files=files)
        if not dimensions or variant.dimension in dimensions
    ]


def _list_style(suite: str, config: VariantConfig) -> "list[AnyVariant]":
    from envs.libero_style import list_style_variants

    found: list[AnyVariant] = []
    for dimension in config.dimensions or (None,):
        found += list_style_variants(suite, dimension=dimension)
    return found


def resolve_index(suite: str, task_id: int, config: VariantConfig) -> None:
    """Check that a task exists.

    Raises:
        UnknownNameError: It does not.
    """
    family, _, bare = suite.partition("/")
    if family == PLUS:
        from envs.libero_plus import find_plus, get_variant

        get_variant(bare, task_id, files=find_plus(config.assets, config.labels))
    else:
        from envs.libero_style import get_style_variant

        get_style_variant(bare, task_id)


def _check_names(
    suites: Sequence[str], found: "Sequence[AnyVariant]", config: VariantConfig
) -> None:
    """Every name that was asked for belongs to a task of the suites."""
    known = {variant.name for variant in found}
    for name in config.names or ():
        if name not in known:
            every = dataclasses.replace(config, names=None)
            names = [v.name for suite in suites for v in _selected(suite, None, every)]
            close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else "none is like it."
            raise UnknownNameError(
                f"variants.names: no task {name!r} among the {len(names)} of {', '.join(suites)}; "
                f"{hint}"
            )


def _level_name(variants: "Iterable[AnyVariant]") -> str:
    return "difficulty" if any(v.difficulty is not None for v in variants) else "magnitude"


def _of_family(family: str, variants: "Iterable[AnyVariant]") -> "list[AnyVariant]":
    return [v for v in variants if v.env_suite.startswith(f"{family}/")]


def _sample(runnable: "Sequence[AnyVariant]", config: VariantConfig) -> "Sequence[AnyVariant]":
    """Draw from a family by the finest strata of which every one gets a task."""
    if config.sample is None or not runnable:
        return runnable
    if config.sample > len(runnable):
        raise ValueError(
            f"variants.sample={config.sample}: only {len(runnable)} tasks of those asked for can "
            "run. Leave it out to run them all."
        )
    keys: list[Callable[[AnyVariant], tuple[str, ...]]] = [
        lambda v: (v.dimension, str(level_of(v)), v.env_suite),
        lambda v: (v.dimension, v.env_suite),
        lambda v: (v.dimension,),
        lambda v: (),
    ]
    groupings = (_grouped(runnable, key) for key in keys)
    groups = next(groups for groups in groupings if len(groups) <= config.sample)
    chosen = {id(v) for v in draw(groups, config.sample, config.sample_seed)}
    return [variant for variant in runnable if id(variant) in chosen]


def _grouped(
    variants: "Iterable[AnyVariant]", key: "Callable[[AnyVariant], tuple[str, ...]]"
) -> "dict[str, list[AnyVariant]]":
    groups: dict[str, list[AnyVariant]] = {}
    for variant in variants:
        groups.setdefault("/".join(key(variant)), []).append(variant)
    return groups


def _strata(
    wanted: "Iterable[AnyVariant]",
    runnable: "Iterable[AnyVariant]",
    drawn: "Iterable[AnyVariant]",
) -> list[Stratum]:
    counts = [Counter(map(_stratum_key, part)) for part in (wanted, runnable, drawn)]
    return [
        Stratum(
            family=key[0].partition("/")[0],
            suite=key[0],
            dimension=key[1],
            level=key[2],
            tasks=counts[0][key],
            runnable=counts[1][key],
            planned=counts[2][key],
        )
        for key in counts[0]
    ]


def _stratum_key(variant: "AnyVariant") -> tuple[str, str, int | None]:
    return variant.env_suite, variant.dimension, level_of(variant)


def _totals(strata: Iterable[Stratum]) -> tuple[int, int, int]:
    rows = [(s.tasks, s.runnable, s.planned) for s in strata]
    tasks, runnable, planned = (sum(column) for column in zip(*rows, strict=True))
    return tasks, runnable, planned
