"""Directories that are whole or absent, written by one process at a time; arrays in them."""

import contextlib
import errno
import fcntl
import io
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vla_opt.io import explain_os_errors, sync_directory

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Hold the lock beside `target`; a second process waits here until the first is done.

    The lock dies with its process, so a killed writer blocks nobody.
    """
    path = _sibling(target, "lock")
    with explain_os_errors("write", target):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _lock(path, target)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # still locked: whoever waits on it looks again
        os.close(handle)


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Give an empty temporary directory that becomes `target` when the block ends well.

    An existing `target` is replaced in that moment. If the block raises, or the process is killed,
    `target` is whole or absent, never half; leftovers of killed writers are removed by the next
    one. Call it under `exclusive(target)`.

    Raises:
        OSError: The directory could not be stored (disk full, no permission).
    """
    temporary, former = _sibling(target, "tmp"), _sibling(target, "old")
    with explain_os_errors("write", target):
        for leftover in (temporary, former):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
    try:
        yield temporary
        with explain_os_errors("write", target):
            publish(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def publish(finished: Path, target: Path) -> None:
    """Sync the files of `finished` to disk and rename it to `target`, replacing what is there."""
    for path in finished.rglob("*"):
        if path.is_file():
            _sync_file(path)
        else:
            sync_directory(path)
    sync_directory(finished)
    former = _sibling(target, "old")
    if target.exists():
        os.rename(target, former)
    os.rename(finished, target)
    sync_directory(target.parent)
    shutil.rmtree(former, ignore_errors=True)


def require_free_space(folder: Path, needed: int, what: str) -> None:
    """Stop before the first byte when the disk cannot hold what is about to be written.

    Args:
        folder: Where it will be written; it need not exist yet.
        needed: Bytes.
        what: What is about to be written, for the message.

    Raises:
        OSError: With ENOSPC; names the bytes needed and free.
    """
    existing = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{what} needs {needed / 1e6:,.0f} MB in {folder}, but {free / 1e6:,.0f} MB are free. "
            "Free space on that disk or choose another folder, then run again.",
        )


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What stands before the values in an ``.npy`` file.

    With it a large array can be written piece by piece. (Writing through a memory map would turn a
    full disk into a bus error.)
    """
    buffer = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    write: Any = np.lib.format.write_array_header_1_0
    write(buffer, header)
    return buffer.getvalue()


def _lock(path: Path, target: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that writes %s", target)
            fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)  # its former holder removed the file while this process waited


def _sibling(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{suffix}")


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
