"""LeRobotDatasets v2.1, through lerobot's own converter; their statistics become exact ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from vla_opt._dataset_stats import fix_stats
from vla_opt._directories import exclusive
from vla_opt._lerobot_read import DatasetFiles
from vla_opt.errors import DataError
from vla_opt.io import atomic_write_json

_VERSION = "v2.1"


def convert(source: Path, root: Path) -> DatasetFiles:
    """Convert a copy of a data set; the original stays as it is.

    Args:
        source: Folder of a LeRobotDataset v2.1.
        root: Folder to create; it appears when everything is done.

    Raises:
        DataError: `source` has another version, or lerobot's converter fails on it.
        FileExistsError: `root` exists and is not empty.
        OSError: The disk is full; nothing is left behind.
    """
    _require_version(source)
    with exclusive(root):
        if root.exists() and any(root.iterdir()):
            raise FileExistsError(f"'{root}' exists and is not empty: give another folder.")
        workshop = root.with_name(f".{root.name}.converting")
        shutil.rmtree(workshop, ignore_errors=True)
        try:
            copy = workshop / "dataset"
            shutil.copytree(source, copy)
            _run_converter(copy)
            fix_stats(copy)
            if root.exists():
                root.rmdir()
            copy.rename(root)
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
    return DatasetFiles(root)


def note(root: Path, said: dict[str, object]) -> None:
    """Write down how the data set came to be."""
    atomic_write_json(root / "meta/import.json", said)


def _require_version(source: Path) -> None:
    file = source / "meta/info.json"
    try:
        version = str(json.loads(file.read_bytes())["codebase_version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{source}' is no LeRobotDataset: {file}: {error!r}") from error
    if version != _VERSION:
        hint = "it needs no conversion" if version.startswith("v3") else "convert it to v2.1 first"
        raise DataError(f"'{source}' is a LeRobotDataset {version}, expected {_VERSION}: {hint}.")


def _run_converter(copy: Path) -> None:
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    try:
        convert_dataset(repo_id="local/dataset", root=copy, push_to_hub=False)
    except OSError:
        raise
    except Exception as error:  # whatever its assertions and libraries find amiss
        raise DataError(f"lerobot's converter failed on the data set: {error!r}") from error
