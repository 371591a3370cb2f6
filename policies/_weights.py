"""Pretrained files that come inside pip packages: found without importing, checked before use."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path


class PinnedFileError(RuntimeError):
    """A pinned file is missing, or its content is not the pinned one."""


@dataclass(frozen=True, kw_only=True)
class PinnedFile:
    """A file of an installed package and the SHA-256 it must have.

    Args:
        package: import name of the package that holds the file.
        requirement: what to give to pip to get exactly this file.
        path: path below the package's folder.
        sha256: expected digest, 64 hexadecimal digits.
    """

    package: str
    requirement: str
    path: str
    sha256: str

    def locate(self) -> Path:
        """Return the file's path after its digest has been checked (once per process).

        Raises:
            PinnedFileError: the package is not installed, the file is not there, or it differs.
        """
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise PinnedFileError(
                f"package '{self.package}' is not installed. Run: pip install '{self.requirement}'"
            )
        file = Path(spec.submodule_search_locations[0]) / self.path
        if not file.is_file():
            raise PinnedFileError(f"{file} is missing. {self._reinstall()}")
        found = _sha256(file, file.stat().st_mtime_ns)
        if found != self.sha256:
            raise PinnedFileError(
                f"{file} is not the pinned file: SHA-256 {found}, expected {self.sha256}. "
                f"{self._reinstall()}"
            )
        return file

    def _reinstall(self) -> str:
        return f"Run: pip install --force-reinstall --no-deps '{self.requirement}'"


@functools.lru_cache(maxsize=16)
def _sha256(file: Path, mtime_ns: int) -> str:
    """Digest of ``file``; the modification time is only there to key the cache."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
