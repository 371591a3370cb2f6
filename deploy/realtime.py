"""Real-time chunking on the wire: a request may carry what the former chunk still had to say.

The server then makes the new chunk agree with the actions that will be executed while it works, and
go on from there (Black et al. 2025, "Real-time execution of action chunking flow policies"). Keys
that openpi does not know, so that its own servers and clients pass over them:

    request   realtime/left_over   (k, n) rows of the former answer's realtime/latent that belong to
                                   the step of this observation and those after it
              realtime/delay       int: steps that will have been executed before the answer is used
    answer    realtime/latent      (horizon, n) the chunk as the model sees it; opaque to the client
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ProtocolError

LEFT_OVER = "realtime/left_over"
DELAY = "realtime/delay"
LATENT = "realtime/latent"


def request_keys(latent: NDArray[Any] | None, elapsed: int, delay: int) -> dict[str, Any]:
    """Return what a request carries for its former chunk; nothing if there is none left.

    Args:
        latent: (horizon, n) of the chunk being executed.
        elapsed: Steps of it that are executed already.
        delay: Steps until the answer will be used.
    """
    if latent is None or elapsed >= len(latent):
        return {}
    return {LEFT_OVER: np.ascontiguousarray(latent[elapsed:]), DELAY: delay}


def read_request(request: dict[str, Any]) -> tuple[NDArray[np.float32], int] | None:
    """Take the keys out of a request: left-over rows and delay, or None if it has none.

    Raises:
        ProtocolError: They are there, but not what they must be.
    """
    left_over, delay = request.pop(LEFT_OVER, None), request.pop(DELAY, 0)
    if left_over is None:
        return None
    good = isinstance(left_over, np.ndarray) and left_over.ndim == 2 and left_over.dtype.kind == "f"
    if not good or not len(left_over) or not np.isfinite(left_over).all():
        raise ProtocolError(f"`{LEFT_OVER}` must be a finite (k, n) array of floats.")
    if not isinstance(delay, int) or isinstance(delay, bool) or delay < 0:
        raise ProtocolError(f"`{DELAY}`={delay!r}: expected a number of steps.")
    return left_over.astype(np.float32), delay


def latent_of(answer: dict[str, Any], horizon: int) -> NDArray[Any] | None:
    """Return the latent chunk of an answer, None if it has none that fits."""
    latent = answer.get(LATENT)
    if isinstance(latent, np.ndarray) and latent.ndim == 2 and len(latent) == horizon:
        return latent
    return None
