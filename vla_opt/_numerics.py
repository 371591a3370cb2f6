"""Settings of torch that decide whether the same run gives the same bits."""

import contextlib
import os
from collections.abc import Iterator

import torch
from torch.utils import deterministic as _memory


def resolve_threads(wanted: int) -> int:
    """Return the number of threads to use: `wanted`, or for 0 what the machine offers.

    OMP_NUM_THREADS counts as what the machine offers, as for torch itself.
    """
    if wanted > 0:
        return wanted
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def fixed_numerics(threads: int, *, deterministic: bool) -> Iterator[None]:
    """Set threads and determinism, and put back what was there.

    Memory is not filled before use, as torch would do here: that finds bugs and costs time.

    Operations without a deterministic version warn, rather than stop the run; on CPU torch has one
    for all that training uses.
    """
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        _memory.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark,
    )
    torch.set_num_threads(threads)
    if deterministic:
        # Without it cuBLAS may add up in another order each time.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        _memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=before[2])
        _memory.fill_uninitialized_memory = before[3]  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = before[4]
