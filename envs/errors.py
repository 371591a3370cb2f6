"""Errors that name the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UnknownNameError(ValueError):
    """A name (suite, task, key, optimizer ...) that is not one of the valid ones."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns the end of an error message: the closest valid name, then all of them.

    Args:
        name: what was given.
        choices: the valid names.

    >>> nearest("libero_objct", ["libero_object", "libero_goal"])
    "Did you mean 'libero_object'? Valid: libero_goal, libero_object."
    """
    valid = sorted(choices)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Valid: {', '.join(valid)}."
