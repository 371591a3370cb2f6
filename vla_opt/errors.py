"""Errors meant for the person at the keyboard: what was given, what was expected, what to do.

The command line shows errors of the project's own classes as one message, and anything else with
its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UnknownNameError(ValueError):
    """A name (suite, optimizer, verb ...) that is none of the known ones."""


class ConfigError(ValueError):
    """A configuration that cannot be used: an unknown key, a wrong type, a missing file."""


class DataError(ValueError):
    """A data set or cache that cannot be used: missing, damaged, or of another format."""


class QuickstartError(RuntimeError):
    """A stage of the quickstart ended without what the next one needs."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of an error message: the valid name nearest to ``name``, and all valid names.

    >>> nearest("moun", ["adamw", "muon", "pion"])
    " Did you mean 'muon'? Valid: adamw, muon, pion."
    """
    valid = sorted(choices)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    suggestion = f" Did you mean '{close[0]}'?" if close else ""
    return f"{suggestion} Valid: {', '.join(valid) or '(none)'}."
