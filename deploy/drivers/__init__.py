"""Ways to the arm: each driver keeps a 1 kHz loop in native code and takes targets at any rate.

The packages they need are imported when a driver is opened, never before; one driver per process,
because libfranka's bindings exclude each other.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Literal, get_args

from deploy.drivers._arm import ArmDriver, ArmState
from deploy.drivers.profiles import CONTROLLER_PROFILES, ControllerProfile, droid_torque
from deploy.errors import RobotError

__all__ = [
    "CONTROLLER_PROFILES",
    "DRIVERS",
    "ArmDriver",
    "ArmState",
    "ControllerProfile",
    "droid_torque",
    "open_arm",
]

DriverName = Literal["franka-rs", "aiofranka", "franky"]
Realtime = Literal["enforce", "ignore"]

_CLASSES = {
    "franka-rs": ("deploy.drivers.franka_rs", "FrankaRsDriver"),
    "aiofranka": ("deploy.drivers.aiofranka", "AioFrankaDriver"),
    "franky": ("deploy.drivers.franky", "FrankyDriver"),
}
DRIVERS: Mapping[str, str] = MappingProxyType(
    {
        "franka-rs": "impedance of the driver's own; Panda and FR3",
        "aiofranka": "DROID's law as compiled code; FR3, Python up to 3.12",
        "franky": "DROID's law in franky's tracker; FR3",
    }
)
"""Name -> what it is."""


def open_arm(
    host: str, driver: DriverName = "franka-rs", *, realtime: Realtime = "enforce"
) -> ArmDriver:
    """Connect to an arm.

    Args:
        host: Address of the control box, or of a simulated arm.
        driver: One of `DRIVERS`.
        realtime: "enforce" insists on a real-time kernel, as a real arm needs one; "ignore" is for
            simulated arms.

    Raises:
        RobotError: The driver is unknown or not installed, or the arm refuses; says what to do.
        RobotDisconnectedError: Nobody answers at `host`.
    """
    if driver not in _CLASSES:
        raise RobotError(f"unknown driver {driver!r}; known: {', '.join(get_args(DriverName))}")
    module, name = _CLASSES[driver]
    opened: ArmDriver = getattr(importlib.import_module(module), name)(host, realtime=realtime)
    return opened


def needed(module: str, package: str) -> ModuleType:
    """Import a package that only some robots need.

    Raises:
        RobotError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RobotError(
            f"this needs the package {package}, which cannot be imported ({error}): "
            f"pip install '{package}'"
        ) from error
