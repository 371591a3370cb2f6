"""Reads hdf5 files, with errors that name file and part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_opt.errors import DataError


def opened(path: Path) -> Any:
    """The file, to be used as a context.

    Raises:
        DataError: It is no hdf5.
    """
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} cannot be read as hdf5: {error}") from error


def read_array(group: Any, key: str, where: str) -> NDArray[Any]:
    """All of one array.

    Raises:
        DataError: It is not there; lists what is.
    """
    if key not in group:
        have = ", ".join(sorted(group)) or "nothing"
        raise DataError(f"{where} has no `{key}`, only {have}.")
    return np.asarray(group[key][()])


def read_numbers(group: Any, key: str, where: str) -> NDArray[np.float32]:
    """All of one array, as float32; see `read_array`."""
    return read_array(group, key, where).astype(np.float32)
