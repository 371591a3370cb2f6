"""One writer per folder, held by the kernel: the lock ends with the process, however that ends."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from vla_opt.errors import ConfigError
from vla_opt.io import explain_os_errors


@contextlib.contextmanager
def only_writer(folder: Path, doing: str) -> Iterator[None]:
    """Hold the lock of a folder.

    Args:
        folder: Made if it is not there.
        doing: What a second process is told of the first, such as "training in".

    Raises:
        ConfigError: Another process holds it: two would mix up what they write.
    """
    with explain_os_errors("write to", folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "ab")  # noqa: SIM115 - closed below
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(
            f"Another process is {doing} {folder}. Wait for it, or give another --output_dir."
        ) from None
    with lock:
        yield
