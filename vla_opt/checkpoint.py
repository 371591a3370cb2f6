"""Checkpoints that are whole or not there.

Layout of one checkpoint, `checkpoints/000600/`:

    pretrained_model/   what an evaluator or robot needs: lerobot's own format, with processors
    training_state/     what resuming needs beside it: optimizer, schedule, data cursor
    manifest.json       size and sha256 of every file above

A checkpoint is filled in a temporary folder, synced and renamed, so an interrupted one never has a
valid name. The manifest tells later damage (a truncated copy, a bad disk) from a good one.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vla_opt.io import atomic_write_json, explain_os_errors, sync_directory

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PRETRAINED = "pretrained_model"
TRAINING_STATE = "training_state"
_FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or does not fit what is loaded into."""


def write_checkpoint(
    folder: Path, step: int, fill: Callable[[Path], None], *, keep_last: int = 0
) -> Path:
    """Write the checkpoint of `step`, then drop the oldest ones.

    Args:
        folder: The folder of all checkpoints of a run.
        step: Number of updates done; names the checkpoint.
        fill: Writes the files into the folder it is given.
        keep_last: How many checkpoints stay, this one included; 0 keeps all.

    Returns:
        The path of the checkpoint.

    Raises:
        OSError: Something could not be stored, for example because the disk is full. Nothing of
            this checkpoint is left, and the earlier ones are all there.
    """
    target = folder / checkpoint_name(step)
    temporary = folder / f".tmp-{target.name}-{os.getpid()}"
    with explain_os_errors("write checkpoint", target), _disk_full_as_os_error():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            fill(temporary)
            _seal(temporary, step)
            _replace_directory(temporary, target)
            _point_last_to(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    if keep_last > 0:
        for old in list_checkpoints(folder)[:-keep_last]:
            _remove(old)
    return target


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` updates."""
    return f"{step:06d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first, good or not."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


@dataclass(frozen=True, kw_only=True)
class Damaged:
    """A checkpoint that is not whole, and what is wrong with it."""

    path: Path
    reason: str


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[Damaged]]:
    """Return the newest checkpoint that is whole, and those newer than it. Changes nothing.

    Args:
        folder: The folder of all checkpoints of a run; it need not exist.
    """
    damaged = []
    for path in reversed(list_checkpoints(folder)):
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            if path.exists():  # else its run has just deleted it
                damaged.append(Damaged(path=path, reason=str(error)))
            continue
        return path, damaged
    return None, damaged


def set_aside(damaged: Damaged) -> str:
    """Rename it to `<step>.damaged`, so that its name is free again; return what to tell.

    Only the one writer of the run may call this.
    """
    aside = damaged.path.with_name(f"{damaged.path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    damaged.path.rename(aside)
    return f"{damaged.reason} Moved to {aside.name}."


def clear_leftovers(folder: Path) -> None:
    """Delete what killed writers left behind. Only the one writer of the run may call this."""
    if folder.is_dir():
        for path in folder.glob(".tmp-*"):
            shutil.rmtree(path, ignore_errors=True)


def newest_for_writer(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that is whole, and what to tell of damaged ones put aside.

    Deletes what killed writers left behind. Only the one writer of the run may call this.
    """
    clear_leftovers(folder)
    path, damaged = latest_checkpoint(folder)
    return path, [set_aside(found) for found in damaged]


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint after comparing every file with it.

    Raises:
        CheckpointError: The manifest is missing or unreadable, or a file is missing, has another
            size or other content; names the first such file.
    """
    manifest = read_manifest(path)
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"Checkpoint {path}: {name} is missing.")
        size = file.stat().st_size
        if size != entry["size"]:
            raise CheckpointError(
                f"Checkpoint {path}: {name} has {size} bytes, expected {entry['size']}."
            )
        if sha256_of(file) != entry["sha256"]:
            raise CheckpointError(f"Checkpoint {path}: the content of {name} has changed.")
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint without checking its files.

    Raises:
        CheckpointError: There is none, or it is not one this version can read.
    """
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is no checkpoint of vla-opt: no {MANIFEST}.") from None
    except ValueError as error:
        raise CheckpointError(f"Checkpoint {path}: {MANIFEST} is not JSON ({error}).") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise CheckpointError(
            f"Checkpoint {path}: manifest format {found!r}, this version reads {_FORMAT}."
        )
    return manifest


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(folder: Path, step: int) -> None:
    """Sync every file and write the manifest over them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        _sync_file(path)
    entries = {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in files
    }
    for directory in {path.parent for path in files}:
        sync_directory(directory)
    atomic_write_json(folder / MANIFEST, {"format": _FORMAT, "step": step, "files": entries})


def _sync_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _replace_directory(source: Path, target: Path) -> None:
    if target.exists():
        _remove(target)
    os.rename(source, target)
    sync_directory(target.parent)


def _point_last_to(target: Path) -> None:
    """Keep the link `last` at the newest checkpoint, as lerobot does."""
    link = target.with_name(".tmp-last")
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    try:
        link.symlink_to(target.name, target_is_directory=True)
        os.replace(link, target.with_name("last"))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        logger.debug("no link to the last checkpoint: %s", error)  # file systems without links


def _remove(path: Path) -> None:
    """Delete a checkpoint; its name vanishes first, so that no half of it is ever taken for one."""
    doomed = path.with_name(f".tmp-removed-{path.name}-{os.getpid()}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


@contextlib.contextmanager
def _disk_full_as_os_error() -> Iterator[None]:
    """Safetensors reports a full disk as an error of its own."""
    try:
        yield
    except SafetensorError as error:
        if "os error 28" in str(error) or "No space left" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
