"""Random numbers as a function of (seed, purpose, step, rank): nothing to save, nothing to restore.

Before every update the global generators are seeded from these four. Noise then differs between
ranks and steps, and is the same again after a resume, whatever ran in between (an evaluation, a
checkpoint, another process).
"""

import hashlib
import random

import numpy as np
import torch


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed that depends on every part and on their order.

    >>> derive_seed(0, "noise", 5, 1) == derive_seed(0, "noise", 5, 1)
    True
    >>> derive_seed(0, "noise", 5, 1) == derive_seed(0, "noise", 51)
    False
    """
    text = "\x1f".join(repr(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(*parts: object) -> None:
    """Seed Python's, numpy's and torch's global generators (all devices) from `parts`."""
    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - policies of others draw from the global one
    torch.manual_seed(seed)
