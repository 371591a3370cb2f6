"""Keeps a simulator's process small: what a scene needed while it was built goes back at once."""

from __future__ import annotations

import ctypes
import gc
import sys

ASSET_CACHE = 100_000_000
"""Bytes of meshes and textures that MuJoCo keeps for the next scene: those of robot and arena."""


def limit_asset_cache() -> None:
    """MuJoCo would keep up to half a gigabyte, most of it objects that no other task has."""
    import mujoco  # a second's work that listing tasks can do without

    mujoco.mj_setCacheCapacity(mujoco.mj_getCache(), ASSET_CACHE)


def give_back() -> None:
    """Returns freed memory to the system; glibc keeps hundreds of megabytes of it otherwise."""
    gc.collect()  # robosuite's scenes are full of cycles
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent from other C libraries
        if trim is not None:
            trim(0)
