"""Finds franka-sim, which is kept apart from the other packages because of its own pins."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from deploy.errors import RobotError

BESIDE = Path(sys.prefix) / "beside"


def franka_sim(module: str) -> ModuleType:
    """Import a module of franka-sim by its full name.

    Raises:
        RobotError: franka-sim is not installed; says how to install it.
    """
    if BESIDE.is_dir() and str(BESIDE) not in sys.path:
        sys.path.append(str(BESIDE))  # last: nothing else may come from there
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RobotError(
            f"the simulated arm needs franka-sim, which cannot be imported ({error}). "
            f"`make install` puts it into '{BESIDE}'; by hand: "
            f"pip install --no-deps --target '{BESIDE}' -r beside.txt"
        ) from error
