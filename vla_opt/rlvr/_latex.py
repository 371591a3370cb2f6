r"""One spelling for answers that only look different: `\dfrac12`, `$\frac{1}{2}$`, `0.5\text{ m}`.

What has a value is compared by value elsewhere; here is only what a formula cannot say: units,
wrappers, spacing, thousands. Written from the conventions of the MATH data set (arXiv 2103.03874).
"""

import re

from vla_opt.rlvr.answers import closing_brace

_SPACING = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|quad|qquad)(?![a-zA-Z])"
    r"|\\[!;:]|\\?\$|\\?%|\^\{?\\circ\}?|\\degree(?![a-zA-Z])|°|\\displaystyle"
)
_WORDS = r"text|textbf|textit|textrm|mbox|mathrm|mathbf|mathit|operatorname"
_UNIT = re.compile(rf"(?<=[\d}})a-z])\s*\\(?:{_WORDS})\{{[^{{}}]*\}}(?:\^\{{?\d\}}?)?$")
_PLAIN_UNIT = re.compile(
    r"^([-+]?[\d.,{}\\/ frac]*\d\}?)\s+[a-zA-Z]{2,}[a-zA-Z. ]*(?:\^?\{?[23²³]\}?)?$"
)
_BETWEEN = re.compile(rf"\s*(?:\\(?:{_WORDS})\{{\s*(?:or|and)\s*\}}|\b(?:or|and)\b)\s*")
_THOUSANDS = re.compile(r"(?<![\d.])([1-9]\d{0,2})((?:,\d{3})+)(?![\d,])")
_MIXED = re.compile(r"(?<![\d.^}\\{])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}")
_MIXED_PLAIN = re.compile(r"(?<![\d./])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])")


def normalise(text: str) -> str:
    r"""The answer without what does not change it.

    >>> normalise(r"$\dfrac12 \text{ cm}^2$."), normalise(r"x = 1{,}250\%")
    ('\\frac{1}{2}', '1250')
    """
    text = text.strip().rstrip(".").replace("\n", " ").replace("\u2212", "-")
    text = re.sub(r"(?<!\\)\\ ", " ", text)
    text = text.replace("{,}", ",").replace("\\,", " ").replace("~", " ")
    text = _SPACING.sub("", text).strip().rstrip(".").strip()
    text = _PLAIN_UNIT.sub(r"\1", _UNIT.sub("", text))
    text = _unwrap(_BETWEEN.sub(",", text))
    text = _full_arguments(re.sub(r"\\[dtc]frac", r"\\frac", text))
    text = _MIXED_PLAIN.sub(_mixed, _MIXED.sub(_mixed, text))
    text = _without_variable(_close_up(text))
    return text if _enclosed(text) else plain_thousands(text)


def plain_thousands(text: str) -> str:
    """Take commas (or spaces) between groups of three digits out."""
    return _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)


def _unwrap(text: str) -> str:
    r"""`\text{even}` to `even`."""
    return re.sub(rf"\\(?:{_WORDS})\{{([^{{}}]*)\}}", lambda match: match.group(1).strip(), text)


def _full_arguments(text: str) -> str:
    r"""`\frac12` to `\frac{1}{2}` and `\sqrt3` to `\sqrt{3}`, in one pass over the text."""
    out, position = [], 0
    for match in re.finditer(r"\\(frac|sqrt)(?![a-zA-Z])", text):
        if match.start() < position:
            continue  # inside an argument; the evaluator reads it anyway
        out.append(text[position : match.end()])
        position = match.end()
        for _ in range(2 if match.group(1) == "frac" else 1):
            argument, position = _argument(text, position)
            out.append(argument)
    return "".join(out) + text[position:]


def _argument(text: str, position: int) -> tuple[str, int]:
    """The argument that begins at `position`, in braces, and where it ends."""
    while position < len(text) and text[position] == " ":
        position += 1
    if position >= len(text) or text[position] == "[":
        return "", position
    if text[position] == "{":
        end = closing_brace(text, position)
        if end is None:
            return "", position
        return "{" + _full_arguments(text[position + 1 : end]) + "}", end + 1
    command = re.compile(r"\\[a-zA-Z]+|.").match(text, position)
    assert command is not None
    if command.group() in ("\\frac", "\\sqrt"):
        return "", position
    return "{" + command.group() + "}", command.end()


def _mixed(match: re.Match[str]) -> str:
    """`1 1/2` is one and a half; a fraction above one is a factor instead."""
    whole, top, bottom = match.groups()
    joint = "+" if int(top) < int(bottom) else "*"
    return rf"({whole}{joint}\frac{{{top}}}{{{bottom}}})"


def _close_up(text: str) -> str:
    """Take spaces out, but for one between two digits that is no separator of thousands."""
    text = re.sub(r"(?<=\d) (?=\d{3}(?!\d))", ",", text) if re.search(r"\d \d{3}", text) else text
    text = re.sub(r"(?<=\d)\s+(?=\d)", "\0", text)
    return re.sub(r"\s+", "", text).replace("\0", " ")


def _without_variable(text: str) -> str:
    """`x=5` to `5`; `x=1,x=2` to `1,2`."""
    parts = [re.sub(r"^\\?[a-zA-Z](?:_\{?\w\}?)?(?:=|\\in)", "", part) for part in text.split(",")]
    return ",".join(parts)


def _enclosed(text: str) -> bool:
    r"""Whether commas separate parts: an interval `(0,100)` is not one hundred."""
    return re.match(r"\(|\[|\\\{", text) is not None
