r"""The value of a small formula in LaTeX: exact where it is rational, without `eval` and bounded.

Grammar, on text without spaces:

    sum     := product (("+" | "-") product)*
    product := signed (("*" | "/" | "\cdot" | "\times" | "\div" | nothing) signed)*
    signed  := ("-" | "+") signed | power
    power   := atom "!"* ("^" exponent)?
    atom    := number | variable | "\pi" | "(" sum ")" | "{" sum "}" | "[" sum "]"
             | "\frac" atom atom | "\sqrt" ("[" sum "]")? atom | function atom
"""

import math
import random
import re
from collections.abc import Callable, Mapping
from fractions import Fraction

Value = Fraction | float

MAX_LENGTH = 400  # of a formula; answers are shorter, and time and depth stay bounded
_MAX_DEPTH = 40
_MAX_BITS = 4096  # of an exact power
_TOKEN = re.compile(r"\d+(?:\.\d*)?|\.\d+|\\[a-zA-Z]+|[a-zA-Z]|[-+*/^(){}\[\]!]")
_OPENING = {"(": ")", "{": "}", "[": "]"}
_PRODUCT = {"*": "*", "\\cdot": "*", "\\times": "*", "/": "/", "\\div": "/"}
_GREEK = frozenset(
    {"alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "nu", "rho", "sigma"}
    | {"tau", "phi", "varphi", "chi", "psi", "omega"}
)
_FUNCTIONS: Mapping[str, Callable[[float], float]] = {
    "\\sin": math.sin,
    "\\cos": math.cos,
    "\\tan": math.tan,
    "\\ln": math.log,
    "\\log": math.log10,
    "\\exp": math.exp,
    "\\arcsin": math.asin,
    "\\arccos": math.acos,
    "\\arctan": math.atan,
}


class UnreadableError(ValueError):
    """The text is no formula of this grammar, or has no real value."""


def evaluate(text: str, point: int = 0) -> Value:
    """The value of a formula, with its variables at one of many fixed points.

    Two formulas that agree at a few points are the same function but for a coincidence, so that
    `x(x+1)` can be compared with `x^2+x` without algebra.

    Args:
        text: the formula, spaces taken out.
        point: which point; a variable has a rational value above 1 that depends on both.

    Raises:
        UnreadableError: it cannot be read, or has no finite real value.

    >>> evaluate(r"\\frac{1}{2}+2^{-1}"), evaluate("2(3-1)!/4")
    (Fraction(1, 1), Fraction(1, 1))
    """
    if not text or len(text) > MAX_LENGTH:
        raise UnreadableError(f"{len(text)} characters: expected 1 to {MAX_LENGTH}")
    tokens = _TOKEN.findall(text)
    if sum(map(len, tokens)) != len(text):
        raise UnreadableError(f"{text!r} holds what is no part of a formula")
    reader = _Reader(tokens, point)
    try:
        value = reader.sum(0)
    except (ArithmeticError, ValueError) as error:
        raise UnreadableError(f"{text!r}: {error}") from error
    if reader.position < len(tokens) or (isinstance(value, float) and not math.isfinite(value)):
        raise UnreadableError(f"{text!r} is not one finite value")
    return value


def sample(variable: str, point: int) -> Fraction:
    """The value of a variable at a point: not a linear function of either, so nothing cancels."""
    return Fraction(random.Random(f"{variable} {point}").randint(1100, 3000), 1009)


class _Reader:
    """Recursive descent; every method reads from `position` on."""

    def __init__(self, tokens: list[str], point: int) -> None:
        self.tokens, self.point, self.position = tokens, point, 0

    def sum(self, depth: int) -> Value:
        if depth > _MAX_DEPTH:
            raise UnreadableError("nested too deeply")
        value = self.product(depth)
        while self._next() in ("+", "-"):
            sign = 1 if self._take() == "+" else -1
            value += sign * self.product(depth)
        return value

    def product(self, depth: int) -> Value:
        value = self.signed(depth)
        while True:
            operator = _PRODUCT.get(self._next())
            if operator is None and not self._begins_factor():
                return value
            if operator is not None:
                self._take()
            factor = self.signed(depth) if operator else self.power(depth)
            value = value / factor if operator == "/" else value * factor

    def signed(self, depth: int) -> Value:
        sign = 1
        while self._next() in ("-", "+"):
            sign *= -1 if self._take() == "-" else 1
        return sign * self.power(depth)

    def power(self, depth: int) -> Value:
        value = self.atom(depth + 1)
        while self._next() == "!":
            self._take()
            value = _factorial(value)
        if self._next() != "^":
            return value
        self._take()
        return _power(value, self._exponent(depth + 1))

    def atom(self, depth: int) -> Value:
        if depth > _MAX_DEPTH:
            raise UnreadableError("nested too deeply")
        token = self._take()
        if token in _OPENING:
            return self._enclosed(_OPENING[token], depth)
        if token[0].isdigit() or token[0] == ".":
            return Fraction(token.rstrip(".") or "0")
        if token == "\\frac":
            return self.atom(depth + 1) / self.atom(depth + 1)
        if token == "\\sqrt":
            return self._root(depth)
        if token == "\\pi":
            return math.pi
        if token in _FUNCTIONS:
            return _FUNCTIONS[token](float(self.power(depth + 1)))
        if token.isalpha() or token[1:] in _GREEK:
            return sample(token, self.point)
        raise UnreadableError(f"unexpected {token!r}")

    def _exponent(self, depth: int) -> Value:
        sign = 1
        while self._next() in ("-", "+"):
            sign *= -1 if self._take() == "-" else 1
        return sign * self.atom(depth)

    def _root(self, depth: int) -> Value:
        degree = Fraction(2)
        if self._next() == "[":
            self._take()
            degree = Fraction(self._enclosed("]", depth))
        return _root(self.atom(depth + 1), degree)

    def _enclosed(self, closing: str, depth: int) -> Value:
        value = self.sum(depth + 1)
        if self._take() != closing:
            raise UnreadableError(f"expected {closing!r}")
        return value

    def _begins_factor(self) -> bool:
        """Whether a factor follows without a sign between; two numbers in a row are none."""
        token = self._next()
        if not token or token in "+-*/^)}]!" or token in _PRODUCT:
            return False
        number = token[0].isdigit() or token[0] == "."
        return not (number and self.tokens[self.position - 1][-1].isdigit())

    def _next(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def _take(self) -> str:
        token = self._next()
        if not token:
            raise UnreadableError("ends too early")
        self.position += 1
        return token


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(exponent) * size <= _MAX_BITS:
            return Fraction(base ** int(exponent))
    if base < 0 and (not isinstance(exponent, Fraction) or exponent.denominator != 1):
        raise UnreadableError("a root of a negative number")
    value: float = float(base) ** float(exponent)
    return value


def _root(value: Value, degree: Fraction) -> Value:
    if degree.denominator != 1 or not 1 <= degree <= 64 or (value < 0 and degree % 2 == 0):
        raise UnreadableError("no real root")
    if isinstance(value, Fraction) and degree == 2:
        top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if (top * top, bottom * bottom) == (value.numerator, value.denominator):
            return Fraction(top, bottom)
    root = math.copysign(abs(float(value)) ** (1.0 / int(degree)), float(value))
    nearest = round(root)
    exact = isinstance(value, Fraction) and abs(nearest) < 2**32 and nearest ** int(degree) == value
    return Fraction(nearest) if exact else root


def _factorial(value: Value) -> Value:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 30:
        raise UnreadableError("a factorial of something else than 0 to 30")
    return Fraction(math.factorial(int(value)))
