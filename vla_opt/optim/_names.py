"""Errors for names that do not exist: what was given, the nearest valid one, all valid ones."""

import difflib
from collections.abc import Iterable

TWO_PIONS = (
    "Two papers of 2026 are called Pion: 'pion' here is the high-pass one (arXiv 2605.19282); "
    "the spectrum-preserving one (arXiv 2605.12492) is 'pion_oet'."
)


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> ValueError:
    """The error to raise when `name` is none of the `valid` names of a `kind` of thing."""
    choices = sorted(valid)
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    note = f" {TWO_PIONS}" if kind == "optimizer" and "pion" in str(name).lower() else ""
    return ValueError(f"Unknown {kind} {name!r}.{hint} Valid: {', '.join(choices)}.{note}")
