"""Which recorded steps command nothing.

Teleoperated demonstrations hold pauses. A policy that learns them stands still at the same place,
for ever if it is deterministic. OpenVLA (Kim et al., arXiv 2406.09246, appendix on LIBERO; its
`regenerate_libero_dataset.py`) leaves such steps out of LIBERO: the names of its data sets end in
`_no_noops` for that. The rule here is the same; the demonstrations are not simulated again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def is_noop(action: NDArray[Any], former: NDArray[Any] | None, *, threshold: float = 1e-4) -> bool:
    """Whether an action moves neither arm nor gripper.

    Args:
        action: (A,) motion of the arm, and the gripper's command last.
        former: The last action that was kept; None at an episode's start.
        threshold: Euclidean norm of the motion below which there is none.

    >>> still = np.zeros(7)
    >>> is_noop(still, None), is_noop(still, still), is_noop(still, still + [0, 0, 0, 0, 0, 0, 1])
    (True, True, False)
    """
    if float(np.linalg.norm(action[:-1])) >= threshold:
        return False
    return former is None or bool(action[-1] == former[-1])


def kept_rows(actions: NDArray[Any], *, threshold: float = 1e-4) -> NDArray[np.int64]:
    """The rows of an episode that remain without its no-ops.

    A step at which the arm stands and the gripper changes its command stays: it is the grasp.

    Args:
        actions: (T, A).
        threshold: See `is_noop`.

    Returns:
        Ascending row numbers; maybe none.
    """
    kept: list[int] = []
    for row, action in enumerate(actions):
        if not is_noop(action, actions[kept[-1]] if kept else None, threshold=threshold):
            kept.append(row)
    return np.array(kept, dtype=np.int64)
