"""Files that are either whole or absent: atomic writes and append-only JSON lines.

Everything a run leaves on disk goes through here, so that a kill or a full disk at any instant
leaves the previous version, never half of the next one.
"""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class StorageError(OSError):
    """A file could not be stored; says where, why, and what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file at `path` by `data`, or leave it as it was.

    The bytes go to a temporary file in the same directory, are synced, and renamed over `path`.
    Missing parent directories are made.

    Raises:
        StorageError: The bytes could not be stored (disk full, no permission); names the path and
            what to do. The temporary file is gone and the former content of `path` untouched.
    """
    target = Path(path)
    with explain_os_errors("write", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        sync_directory(target.parent)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file at `path` by `text` in UTF-8; see `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | os.PathLike[str], value: object) -> None:
    """Replace the file at `path` by `value` as indented JSON; see `atomic_write_bytes`."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_jsonl(path: str | os.PathLike[str], row: Mapping[str, Any]) -> None:
    """Append one row as one line of JSON, synced to disk before returning.

    A half line left by a writer that was killed is cut off first; if the disk fills while the row
    is written, the file is cut back to the rows it had. One writer per file at a time.

    Raises:
        StorageError: The row could not be stored; names the path and what to do.
    """
    target = Path(path)
    line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n"
    with explain_os_errors("append to", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "ab") as file:
            size = _whole_lines_size(target, file.tell())
            if size != file.tell():
                file.truncate(size)
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                _cut_back(target, size)
                raise


def read_jsonl(path: str | os.PathLike[str]) -> list[Row]:
    """Return the rows of a JSON-lines file; a missing file has none.

    A last line without its newline is what a killed writer leaves, and is ignored.

    Raises:
        ValueError: An earlier line is not JSON; names the file and the line.
    """
    target = Path(path)
    if not target.exists():
        return []
    lines = target.read_bytes().split(b"\n")[:-1]  # what follows the last newline is incomplete
    return [_parse_line(target, number, line) for number, line in enumerate(lines, 1) if line]


def filter_jsonl(path: str | os.PathLike[str], keep: Callable[[Row], bool]) -> int:
    """Keep the rows for which `keep` is true, atomically; return how many were dropped.

    The bytes of the rows that stay are not changed.
    """
    target = Path(path)
    if not target.exists():
        return 0
    lines = [line for line in target.read_bytes().split(b"\n")[:-1] if line]
    kept = [line for n, line in enumerate(lines, 1) if keep(_parse_line(target, n, line))]
    data = b"".join(line + b"\n" for line in kept)
    if data != target.read_bytes():
        atomic_write_bytes(target, data)
    return len(lines) - len(kept)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make renames inside the directory durable (where the platform can open directories)."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a directory
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def explain_os_errors(verb: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an `OSError` into a `StorageError` with what was attempted, where, and what to do."""
    try:
        yield
    except OSError as error:
        inner = isinstance(error, StorageError) and isinstance(error.__cause__, OSError)
        reason = error.__cause__ if inner else error  # the outermost of several names the path
        assert isinstance(reason, OSError)
        message = f"cannot {verb} {path}: {_advice(reason, Path(path))}"
        raise StorageError(reason.errno, message) from reason


def _advice(error: OSError, path: Path) -> str:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{reason}. Free space on that disk or choose another folder, then run again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{reason}. Choose a folder that this user may write to."
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{reason}. Something on the way to {path} is a file, not a folder."
    return reason


def _parse_line(path: Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(
            f"{path}, line {number}: expected one JSON object, got {line[:80]!r} ({error}). "
            "The file was edited or damaged: restore it or delete that line."
        ) from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:80]!r}.")
    return row


def _whole_lines_size(path: Path, size: int) -> int:
    """Size of the file up to and with its last newline."""
    with open(path, "rb") as file:
        end = size
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


def _cut_back(path: Path, size: int) -> None:
    with contextlib.suppress(OSError):
        os.truncate(path, size)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
