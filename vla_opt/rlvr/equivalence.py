r"""Whether two answers say the same: by spelling, by value, or part by part.

Nothing is executed and nothing is simplified: values are exact fractions where they are rational,
and formulas with variables are compared at fixed points. Everything is bounded, so that a hostile
answer costs milliseconds, not the run.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from vla_opt.rlvr._arithmetic import MAX_LENGTH, UnreadableError, Value, evaluate
from vla_opt.rlvr._latex import normalise, plain_thousands

_POINTS = 3
_RELATIVE = 1e-9  # of irrational values; a rounded decimal is another number
_MAX_PARTS = 40
_PAIRS = {"(": ")", "[": "]"}
_UNIT = re.compile(r"^(.*\d)\s+[a-zA-Z][a-zA-Z. ]*(?:\^\d)?$")
_MATRIX = re.compile(r"^\\begin\{([bpvV]?matrix)\}(.*)\\end\{\1\}$")


def equivalent(given: str, expected: str) -> bool:
    r"""Whether an answer says what the expected one says.

    Equal spelling after `normalise`; equal value (exactly, or to 1e-9 where it is irrational);
    equal functions of their variables; or equal parts: tuples and intervals in order, sets, lists
    and unions in any. Percent and currency signs, degrees and units are not compared, as by the
    data set's own judge. A decimal is not its neighbour: 0.33 is no third.

    Args:
        given: what a model wrote; any text.
        expected: what is right; an empty one is never met.

    >>> equivalent(r"\frac{1}{2}", "0.5"), equivalent("(1, 2)", "(2, 1)")
    (True, False)
    >>> equivalent("2x + x^2", "x(x+2)"), equivalent("7, -7", r"\pm 7")
    (True, True)
    """
    if max(len(given), len(expected)) > MAX_LENGTH:
        return given.strip() == expected.strip() != ""
    return _same(normalise(given), normalise(expected), depth=0)


def same_number(given: str, expected: str) -> bool:
    """Whether both are numbers, and equal exactly: 18, 18.00, $18, 1,800/100.

    >>> same_number("$1,200.00", "1200 dollars"), same_number("5 or 6", "5")
    (True, False)
    """
    if max(len(given), len(expected)) > MAX_LENGTH:
        return False
    values = [_number(text) for text in (given, expected)]
    return values[0] is not None and values[0] == values[1]


def _number(text: str) -> Value | None:
    """The value of a text that is a number, with or without a unit."""
    digits = normalise(_UNIT.sub(r"\1", text.strip()))
    if re.search(r"[a-zA-Z]", digits.replace("\\frac", "")):
        return None
    try:
        return evaluate(digits)
    except UnreadableError:
        return None


def _same(given: str, expected: str, depth: int) -> bool:
    if not expected or not given:
        return False
    if given == expected or plain_thousands(given) == plain_thousands(expected):
        return True
    if _is_word(given) or _is_word(expected):
        return given.strip("()").casefold() == expected.strip("()").casefold()
    return _same_value(given, expected) or (depth < 4 and _same_parts(given, expected, depth))


def _is_word(text: str) -> bool:
    """Letters that are a word, not a product of variables."""
    return re.fullmatch(r"\(?[a-zA-Z]{3,}\)?", text) is not None


def _same_value(given: str, expected: str) -> bool:
    sides = [text.split("=") for text in (given, expected)]
    if len(sides[0]) != len(sides[1]) or len(sides[0]) > 2:
        return False
    return all(map(_same_function, *sides))


def _same_function(given: str, expected: str) -> bool:
    points = range(_POINTS if re.search(r"[a-zA-Z]", given + expected) else 1)
    try:
        return all(_close(evaluate(given, k), evaluate(expected, k)) for k in points)
    except UnreadableError:
        return False


def _close(a: Value, b: Value) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    try:
        return math.isclose(a, b, rel_tol=_RELATIVE, abs_tol=1e-12)
    except OverflowError:
        return False


@dataclass(frozen=True)
class _Parts:
    shape: str  # brackets, or rows and columns
    parts: tuple[str, ...]
    ordered: bool


def _same_parts(given: str, expected: str, depth: int) -> bool:
    a, b = _parts(given), _parts(expected)
    if a is None or b is None or a.shape != b.shape or len(a.parts) != len(b.parts):
        return False
    if a.ordered:
        return all(_same(x, y, depth + 1) for x, y in zip(a.parts, b.parts, strict=True))
    rest = list(b.parts)
    for part in a.parts:
        match = next((other for other in rest if _same(part, other, depth + 1)), None)
        if match is None:
            return False
        rest.remove(match)
    return True


def _parts(text: str) -> _Parts | None:
    """What a text is composed of; None if it is one thing."""
    if text.count("\\pm") == 1:
        text = ",".join(text.replace("\\pm", sign) for sign in ("+", "-"))
    if matrix := _MATRIX.match(text):
        rows = [row.split("&") for row in re.split(r"\\\\", matrix.group(2)) if row]
        shape = "x".join(str(len(row)) for row in rows)
        return _limited(f"matrix {shape}", [cell for row in rows for cell in row], ordered=True)
    for separator, ordered in (("\\cup", False), (",", False)):
        pieces = _split(text, separator)
        if len(pieces) > 1:
            return _limited(separator, pieces, ordered=ordered)
    if text.startswith("\\{") and text.endswith("\\}"):
        return _limited("set", _split(text[2:-2], ","), ordered=False)
    if text[0] in _PAIRS and text[-1] in _PAIRS.values():
        return _limited(text[0] + text[-1], _split(text[1:-1], ","), ordered=True)
    return None


def _limited(shape: str, parts: list[str], *, ordered: bool) -> _Parts | None:
    return _Parts(shape, tuple(parts), ordered) if len(parts) <= _MAX_PARTS else None


def _split(text: str, separator: str) -> list[str]:
    """Cut at separators that stand outside all brackets."""
    pieces, depth, start, position = [], 0, 0, 0
    while position < len(text):
        if depth == 0 and text.startswith(separator, position):
            pieces.append(text[start:position])
            position = start = position + len(separator)
            continue
        depth += (text[position] in "([{") - (text[position] in ")]}")
        position += 1
    return [*pieces, text[start:]]
