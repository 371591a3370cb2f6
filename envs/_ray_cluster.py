"""A local Ray cluster that leaves nothing behind. Ray is imported when it is first needed."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 1 << 30  # virtual until used; a recorded demonstration is about 10 MB
_LONGEST_TMP = 24  # a socket path ends at 107 characters, Ray appends about 80
_LOCAL_ENV = {
    "RAY_AUTH_MODE": "disabled",  # 2.59+ would write a token to the home directory
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # hiding the GPU from a worker also hides it from EGL
    "RAY_DEDUP_LOGS": "0",
}


@contextlib.contextmanager
def ray_cluster(num_cpus: int) -> Iterator[Any]:
    """Give the `ray` module with a cluster behind it; shut down only what was started here.

    An initialised Ray is used as it is. With RAY_ADDRESS set, that cluster is joined. Else a local one
    is started: no dashboard, no token, nothing in the home directory, its files removed at the end.

    Args:
        num_cpus: logical CPUs of a local cluster, i.e. how many one-CPU workers it holds at once.
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
    folder = tempfile.mkdtemp(prefix="vla_ray_", dir=_short_tmp())
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=folder,
        )
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _short_tmp() -> str:
    folder = tempfile.gettempdir()
    return folder if len(folder) <= _LONGEST_TMP else "/tmp"
