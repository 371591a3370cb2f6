"""Demonstrations of LIBERO as published."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[1] / "plugin"
sys.path.insert(0, str(PLUGIN))

from foreign import actions_with_pauses, write_libero  # noqa: E402


@pytest.fixture
def libero(tmp_path: Path) -> Path:
    folder = tmp_path / "libero_spatial"
    folder.mkdir()
    demos = {f"demo_{n}": actions_with_pauses() for n in (10, 2)}
    write_libero(folder / "put_the_bowl_on_the_plate_demo.hdf5", demos)
    return folder
