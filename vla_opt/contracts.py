"""Do two parties mean the same by what they exchange? The one comparison of this project.

A policy, a data set, an environment and a robot each state terms: names with values (shapes of
pictures, names of dimensions, control rate, polarity of the gripper ...). Training, evaluation,
deployment and `vla-opt check` compare terms here before anything starts; what the terms of a party
are is said where that party is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vla_opt.errors import nearest

__all__ = [
    "Finding",
    "Terms",
    "Verdict",
    "compare",
    "compare_chunk",
    "compare_features",
    "findings_table",
    "lines",
]

Verdict = Literal["match", "differs", "warning", "unknown"]
"""`differs` must not go on, `warning` may, `unknown` says that one side does not tell."""

Terms = Mapping[str, Any]
"""Name -> value; None, or no entry, where a party does not say it."""

_MARKS: Mapping[str, str] = {"match": "ok", "differs": "DIFFERS", "warning": "warn", "unknown": "?"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One term of two parties.

    Attributes:
        item: What it is about.
        ours: What the first party says.
        theirs: What the second says; empty where there is nothing to compare with.
        verdict: See `Verdict`.
        remedy: What to do about it; empty if that is plain.
    """

    item: str
    ours: str
    theirs: str
    verdict: Verdict
    remedy: str = ""

    @property
    def line(self) -> str:
        """Both values in one line, as errors list them.

        >>> Finding(item="control_hz", ours="10", theirs="20", verdict="differs").line
        'control_hz: 10 against 20'
        """
        end = f". {self.remedy}" if self.remedy else ""
        other = f" against {self.theirs}" if self.theirs else ""
        return f"{self.item}: {self.ours}{other}{end}"


def compare(
    ours: Terms,
    theirs: Terms,
    *,
    complete: bool = False,
    tolerated: Iterable[str] = (),
) -> list[Finding]:
    """Compare two parties' terms, sorted by name.

    Args:
        ours: Of the first party.
        theirs: Of the second.
        complete: Both say everything there is: a term that only one of them has, differs.
        tolerated: Terms whose difference is a warning.

    >>> [f.verdict for f in compare({"control_hz": 20, "gripper": None}, {"control_hz": 20.0})]
    ['match']
    >>> [f.line for f in compare({"control_hz": 20}, {"control_hz": 15})]
    ['control_hz: 20 against 15']
    """
    allowed = frozenset(tolerated)
    found = []
    for item in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(item), theirs.get(item)
        if mine is None and other is None:
            continue
        found.append(_judge(item, mine, other, complete, item in allowed))
    return found


def _judge(item: str, mine: Any, other: Any, complete: bool, tolerated: bool) -> Finding:
    different: Verdict = "warning" if tolerated else "differs"
    if mine is None or other is None:
        gap = "absent" if complete else "not stated"
        return Finding(
            item=item,
            ours=gap if mine is None else _text(mine),
            theirs=gap if other is None else _text(other),
            verdict=different if complete else "unknown",
        )
    equal = _plain(mine) == _plain(other)
    return Finding(
        item=item,
        ours=_text(mine),
        theirs=_text(other),
        verdict="match" if equal else different,
    )


def compare_features(
    taken: Mapping[str, Sequence[int]], given: Mapping[str, Sequence[int]]
) -> list[Finding]:
    """Compare what one party must be given with what the other gives; more than that is fine.

    Args:
        taken: Name -> shape.
        given: Name -> shape.
    """
    found = []
    for name, shape in taken.items():
        shown = given.get(name)
        if shown is None:
            remedy = nearest(name, given).strip()
            absent = "wanted, but absent"
            found.append(
                Finding(item=name, ours=absent, theirs="", verdict="differs", remedy=remedy)
            )
            continue
        found.append(
            Finding(
                item=name,
                ours=f"shape {list(shape)}",
                theirs=str(list(shown)),
                verdict="match" if list(shape) == list(shown) else "differs",
            )
        )
    return found


def compare_chunk(chunk: object, execute_steps: int | None) -> list[Finding]:
    """Compare the length of a chunk of actions with how much of it will be executed.

    Args:
        chunk: Actions in a chunk; anything but a number is unknown.
        execute_steps: Actions executed before the policy looks again; None if nobody says.
    """
    if execute_steps is None:
        return []
    theirs = f"execute_steps {execute_steps}"
    if not isinstance(chunk, int):
        return [Finding(item="chunk_size", ours="not stated", theirs=theirs, verdict="unknown")]
    verdict: Verdict = "match" if execute_steps <= chunk else "differs"
    return [Finding(item="chunk_size", ours=str(chunk), theirs=theirs, verdict=verdict)]


def lines(findings: Iterable[Finding], verdict: Verdict) -> list[str]:
    """The lines of all findings with one verdict."""
    return [finding.line for finding in findings if finding.verdict == verdict]


def findings_table(findings: Sequence[Finding], ours: str, theirs: str) -> str:
    """A table for a terminal, what differs first.

    Args:
        findings: At least none.
        ours: Heading of the first party.
        theirs: Heading of the second.
    """
    order = ("differs", "warning", "unknown", "match")
    ranked = sorted(findings, key=lambda finding: order.index(finding.verdict))
    cells = [("", "term", ours, theirs)]
    cells += [(_MARKS[f.verdict], f.item, _short(f.ours), _short(f.theirs)) for f in ranked]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    text = []
    for row, finding in zip(cells, [None, *ranked], strict=True):
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        text.append("  ".join([*padded, row[3]]).rstrip())
        if finding is not None and finding.remedy and finding.verdict != "match":
            text.append(f"{'':{widths[0]}}  -> {finding.remedy}")
    return "\n".join(text)


def _plain(value: Any) -> Any:
    """Lists and tuples are the same thing after a trip through JSON."""
    return tuple(_plain(v) for v in value) if isinstance(value, (list, tuple)) else value


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(text: str, width: int = 44) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
