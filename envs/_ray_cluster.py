"""A local Ray cluster that leaves nothing behind. Ray is imported when it is first needed."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from envs.pool import PoolError

logger = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 1 << 30  # virtual until used; a recorded demonstration is about 10 MB
_LONGEST_TMP = 24  # a socket path ends at 107 characters, Ray appends about 80
_PREFIX = "vla_ray_"
_STARTS = 3
_LOCAL_ENV = {
    "RAY_AUTH_MODE": "disabled",  # 2.59+ would write a token to the home directory
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # at Ray's 15, workers starve beside anything else on the machine
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a GPU hidden from a worker is hidden from EGL too
}


@contextlib.contextmanager
def ray_cluster(num_cpus: int) -> Iterator[Any]:
    """Give the `ray` module with a cluster behind it; shut down only what was started here.

    An initialised Ray is used as it is. With RAY_ADDRESS set, that cluster is joined. Else a local
    one is started: no dashboard, no token, nothing in the home directory, its files removed at the
    end.

    Args:
        num_cpus: logical CPUs of a local cluster, i.e. how many one-CPU workers it holds at once.

    Raises:
        PoolError: a local cluster did not start, several times over.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        for name, value in _LOCAL_ENV.items():
            os.environ.setdefault(name, value)  # read when ray is imported
    import ray

    if ray.is_initialized():
        yield ray
        return
    if address is not None:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield ray
        finally:
            ray.shutdown()
        return
    with _local_cluster(ray, num_cpus):
        yield ray


@contextlib.contextmanager
def _local_cluster(ray: Any, num_cpus: int) -> Iterator[None]:
    tmp = _short_tmp()
    _remove_leftovers(tmp)
    folders: list[str] = []
    try:
        for attempt in range(_STARTS):
            folders.append(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}_", dir=tmp))
            try:
                _start(ray, num_cpus, folders[-1])
                break
            except Exception as error:  # Ray gives a node 30 s, too few for a crowded machine
                ray.shutdown()
                _end_processes(folders[-1])
                logger.warning("Ray did not start (attempt %d): %s", attempt + 1, error)
                if attempt == _STARTS - 1:
                    raise PoolError(
                        f"Ray did not start in {_STARTS} attempts: {error} Try with fewer other "
                        "programs on this machine, or without processes: backend=serial."
                    ) from error
        yield
    finally:
        ray.shutdown()
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _start(ray: Any, num_cpus: int, folder: str) -> None:
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_OBJECT_STORE_BYTES,
        _temp_dir=folder,
    )


def _end_processes(folder: str) -> None:
    """End what a start that failed has left running: Ray does not know it as its own."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(folder in word for word in child.cmdline()):
                child.kill()
                child.wait(timeout=10)


def _short_tmp() -> Path:
    folder = tempfile.gettempdir()
    return Path(folder if len(folder) <= _LONGEST_TMP else "/tmp")


def _remove_leftovers(tmp: Path) -> None:
    """Remove the files of clusters whose owner was killed."""
    for folder in tmp.glob(f"{_PREFIX}*_*"):
        pid = folder.name.removeprefix(_PREFIX).partition("_")[0]
        if pid.isdigit() and not Path("/proc", pid).exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)
