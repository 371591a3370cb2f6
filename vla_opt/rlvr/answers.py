r"""Where in a text the final answer stands: `\boxed{...}`, `#### n`, or the last number.

A model's text is hostile input: nothing here evaluates it, and every scan is linear in its length.
"""

import re
from collections import deque

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_NUMBER = re.compile(r"[-+]?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?%?")


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}`, braces inside it included.

    None if there is no box, or if the last one is not closed: its answer was cut off, and an
    earlier box was an intermediate result.

    >>> boxed(r"first \boxed{1}, so \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> boxed(r"\boxed 7") == "7" and boxed(r"\boxed{3") is None
    True
    """
    found = _last(_BOX, text)
    if found is None:
        return None
    rest = text[found.end() :]
    if not rest.startswith("{"):
        words = rest.split(None, 1)
        return words[0].rstrip("$.,;") or None if words else None
    end = closing_brace(rest, 0)
    return None if end is None else rest[1:end].strip()


def closing_brace(text: str, start: int) -> int | None:
    r"""The position of the brace that closes the one at `start`; `\{` and `\}` do not count."""
    depth, position = 0, start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return position
        position += 1
    return None


def hashed(text: str) -> str | None:
    """What follows the last `####` on its line, as GSM8K's own solutions end.

    >>> hashed("2 + 2 = 4\\n#### 4 apples\\n")
    '4 apples'
    """
    _, mark, rest = text.rpartition("####")
    line = rest.strip().partition("\n")[0].strip() if mark else ""
    return line or None


def last_number(text: str) -> str | None:
    """The last number of a text, with its sign, separators and fraction.

    >>> last_number("3 boxes of 4 are 1,200.50 in all.")
    '1,200.50'
    """
    found = _last(_NUMBER, text)
    return None if found is None else found.group()


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = deque(pattern.finditer(text), maxlen=1)
    return last[0] if last else None
