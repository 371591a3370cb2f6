"""Which answers count as right, and that no text can stop the judge."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla_opt.errors import UnknownNameError
from vla_opt.rlvr import rewards
from vla_opt.rlvr._arithmetic import UnreadableError, evaluate, sample
from vla_opt.rlvr._latex import normalise
from vla_opt.rlvr.answers import boxed, hashed, last_number
from vla_opt.rlvr.equivalence import equivalent, same_number


def calm(examples: int) -> settings:
    """On a crowded machine a microsecond's work may take a second: time decides nothing here."""
    slow = [HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=slow)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5}", "5"),
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{\text{a {nested} set } \{1,2\}}", r"\text{a {nested} set } \{1,2\}"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed {3}", "3"),
        (r"\boxed 7.", "7"),
        (r"\fbox{8}", "8"),
        (r"\boxed{\boxed{9}}", "9"),
        (r"\boxed{1} and at last \boxed{2", None),
        (r"\boxedness{5}", None),
        ("no box", None),
        (r"\boxed", None),
        (r"\boxed{}", ""),
        (r"\boxed{\}}", r"\}"),
    ],
)
def test_the_last_box_is_the_answer(text: str, answer: str | None) -> None:
    assert boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a\n#### 42", "42"),
        ("#### 1\n#### 2", "2"),
        ("####   -3.5 km\nmore", "-3.5 km"),
        ("####\n 7", "7"),
        ("####", None),
        ("42", None),
    ],
)
def test_the_last_mark_is_the_answer(text: str, answer: str | None) -> None:
    assert hashed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1 and -2.5", "-2.5"),
        ("a 3/4 share", "3/4"),
        ("costs $1,200.50.", "$1,200.50"),
        ("50% of it", "50%"),
        ("in .5 s", ".5"),
        ("none", None),
    ],
)
def test_the_last_number_of_a_text(text: str, answer: str | None) -> None:
    assert last_number(text) == answer


SAME_NUMBER = [
    *[("18", "18"), ("18.0", "18"), ("$18", "18"), ("18 dollars", "18"), ("1,800", "1800")],
    *[("-3", "-3"), ("+3", "3"), (".5", "0.5"), ("1/2", "0.5"), ("50%", "50"), ("1 800", "1800")],
    *[("18.", "18"), ("1,234,567.25", "1234567.25"), (r"\$18", "18"), ("3 m^2", "3")],
    *[("5 sq. ft", "5"), ("18 apples.", "18"), (r"1{,}000", "1000"), ("2^3", "8"), ("007", "7")],
]
OTHER_NUMBER = [
    *[("18", "19"), ("5 or 6", "5"), ("", "5"), ("five", "5"), ("18.01", "18"), ("1 2", "12")],
    *[("x", "x"), ("5 hours 30 minutes", "5"), ("1/0", "1"), ("-3", "3"), ("1e5", "100000")],
    *[("12,34", "1234"), ("3..5", "3.5"), ("inf", "inf"), ("nan", "nan"), ("5", "")],
]


@pytest.mark.parametrize(("given_", "expected"), SAME_NUMBER)
def test_equal_numbers_are_equal_however_written(given_: str, expected: str) -> None:
    assert same_number(given_, expected)


@pytest.mark.parametrize(("given_", "expected"), OTHER_NUMBER)
def test_other_numbers_and_other_texts_are_not_equal(given_: str, expected: str) -> None:
    assert not same_number(given_, expected)


EQUIVALENT = [
    (r"\frac{1}{2}", r"\dfrac12"),
    (r"\frac12", "0.5"),
    (r"\tfrac{3}{4}", "3/4"),
    (r"\frac{\sqrt3}{2}", r"\frac{\sqrt{3}}{2}"),
    (r"\frac{\sqrt{3}}{2}", r"\sqrt{\frac34}"),
    (r"\frac1{72}", r"\frac{1}{72}"),
    (r"\frac\pi2", r"\pi/2"),
    (r"2\pi", r"\pi\cdot 2"),
    (r"1\frac{1}{2}", "1.5"),
    ("1 1/2", r"\frac{3}{2}"),
    (r"-1\frac12", "-1.5"),
    (r"10\,000", "10000"),
    (r"1,234,567", "1234567"),
    (r"50\%", "50"),
    (r"90^\circ", "90"),
    (r"90^{\circ}", "90 degrees"),
    (r"5\text{ cm}^2", "5"),
    (r"5\mbox{ inches}", "5"),
    (r"\$32.50", "32.5"),
    ("x=5", "5"),
    (r"x \in (1,2)", "(1,2)"),
    ("x=1, x=2", "2, 1"),
    (r"\left(1, 2\right)", "(1,2)"),
    (r"(-\infty, 3]", r"\left(-\infty,3\right]"),
    (r"[0,1] \cup (2,3)", r"(2,3)\cup[0,1]"),
    (r"\{1, 2, 3\}", r"\{3,2,1\}"),
    (r"\pm 7", "-7, 7"),
    (r"1 \pm \sqrt{2}", r"1-\sqrt2, 1+\sqrt2"),
    (r"3 \text{ or } 5", "5, 3"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2.0\end{pmatrix}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("x(x+1)", "x^2+x"),
    (r"\frac{x+1}{2}", r"\frac{1}{2}x+0.5"),
    (r"\frac{a}{b}", "a/b"),
    ("y = 2x + 3", "y=3+2x"),
    ("2xy", "2yx"),
    (r"\text{Monday}", "monday"),
    (r"\text{(A)}", "A"),
    (r"(\text{C})", "C"),
    (r"\text{even}", r"\mathrm{even}"),
    ("3!", "6"),
    (r"\sqrt[3]{8}", "2"),
    (r"\sqrt[3]{-8}", "-2"),
    ("2^{10}", "1024"),
    ("-2^2", "-4"),
    ("2^{-1}", "0.5"),
    (r"\sin(0)", "0"),
    (r"\log 100", "2"),
    (r"4 \div 2 \times 3", "6"),
    (r"101_{2}", r"101_{2}"),
    (r"\frac{10}{4}", "2.5"),
    ("(1,000, 2)", r"(1,000,2)"),
    ("1,100", "1100"),
    ("0", "-0"),
]
DIFFERENT = [
    ("0.33", r"\frac{1}{3}"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    (r"\{1,2\}", "(1,2)"),
    (r"(0,100)", "100"),
    ("1", "1, 1"),
    ("1, 1, 2", "1, 2, 2"),
    ("3.14", r"\pi"),
    ("x+1", "x-1"),
    ("a+d", "b+c"),
    ("ab+cd", "ac+bd"),
    ("x", "y"),
    ("no", "yes"),
    ("Tuesday", r"\text{Monday}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    ("1 2", "12"),
    ("", "5"),
    ("5", ""),
    (r"\frac{1}{0}", r"\frac{2}{0}"),
    (r"\sqrt{-1}", "1"),
    ("__import__('os')", "0"),
    ("9**9**9", "1"),
    ("(1,2),(3,4)", "(1,3),(2,4)"),
    ("5x", "5"),
    ("2x=4", "2x=5"),
]


@pytest.mark.parametrize(("given_", "expected"), EQUIVALENT)
def test_answers_that_say_the_same(given_: str, expected: str) -> None:
    assert equivalent(given_, expected)
    assert equivalent(expected, given_)


@pytest.mark.parametrize(("given_", "expected"), DIFFERENT)
def test_answers_that_say_something_else(given_: str, expected: str) -> None:
    assert not equivalent(given_, expected)


@pytest.mark.parametrize(
    "text",
    [
        *["9^{9^{9^9}}", "(" * 300, "{" * 399, r"\frac" * 80, "-" * 390 + "1", "1" * 400],
        *["((((1))))" * 40, "x^" * 150 + "2", r"\sqrt" * 79 + "2", "30!^30!", "1," * 200],
        *[r"\boxed{" * 50, "\\" * 399, r"\begin{pmatrix}" + "&" * 300 + r"\end{pmatrix}", "\0 \0"],
        *["(1,(1,(1,(1,(1,2)))))", "frac " * 70 + "1 cm", "e" * 400, "=" * 300, "1 1/2 " * 60],
    ],
)
def test_hostile_text_is_wrong_and_not_an_error(text: str) -> None:
    assert not equivalent(text, "12345.678")
    assert not same_number(text, "12345.678")
    for score in rewards.REWARDS.values():
        score(text, "12345.678")


def test_equal_spelling_wins_where_nothing_can_be_evaluated() -> None:
    assert equivalent(r"\triangle ABC \sim \triangle DEF", r"\triangle ABC\sim\triangle DEF")


# What is read ------------------------------------------------------------------------------------


@given(st.fractions(max_denominator=10**6))
@calm(60)
def test_a_fraction_reads_back_exactly(value: Fraction) -> None:
    latex = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    assert evaluate(latex) == value
    assert equivalent(latex, f"{value.numerator}/{value.denominator}")


@given(st.integers(-(10**15), 10**15))
@calm(60)
def test_separators_of_thousands_do_not_matter(value: int) -> None:
    assert same_number(f"{value:,}", str(value))
    assert same_number(f"${value:,}.00", f"{value} dollars")
    assert rewards.gsm8k(f"thus\n#### {value:,}", f"some steps\n#### {value}") == 1.0
    assert rewards.gsm8k(f"thus\n#### {value + 1:,}", f"some steps\n#### {value}") == 0.0


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=4, min_value=-(10**6), max_value=10**6
    )
)
@calm(60)
def test_a_decimal_equals_the_fraction_it_is(value: object) -> None:
    exact = Fraction(str(value))
    assert equivalent(f"{value:f}", rf"\frac{{{exact.numerator}}}{{{exact.denominator}}}")


@st.composite
def formulas(draw: st.DrawFn) -> tuple[str, Fraction]:
    """A formula in LaTeX and its value, built together."""
    leaf = st.integers(0, 99).map(lambda n: (str(n), Fraction(n)))

    def grow(
        inner: st.SearchStrategy[tuple[str, Fraction]],
    ) -> st.SearchStrategy[tuple[str, Fraction]]:
        pair = st.tuples(inner, inner)
        return st.one_of(
            pair.map(lambda p: (f"({p[0][0]}+{p[1][0]})", p[0][1] + p[1][1])),
            pair.map(lambda p: (f"({p[0][0]}-{p[1][0]})", p[0][1] - p[1][1])),
            pair.map(lambda p: (rf"{p[0][0]}\cdot({p[1][0]})", p[0][1] * p[1][1])),
            pair.filter(lambda p: p[1][1] != 0).map(
                lambda p: (rf"\frac{{{p[0][0]}}}{{{p[1][0]}}}", p[0][1] / p[1][1])
            ),
            inner.map(lambda e: (f"({e[0]})^{{2}}", e[1] ** 2)),
            inner.map(lambda e: (f"(-({e[0]}))", -e[1])),
        )

    return draw(st.recursive(leaf, grow, max_leaves=6))


@given(formulas())
@calm(60)
def test_value_of_a_formula_is_that_of_its_parts(formula: tuple[str, Fraction]) -> None:
    text, value = formula
    assert evaluate(text) == value


@given(st.text(max_size=120))
@calm(150)
def test_any_text_is_judged_without_an_error(text: str) -> None:
    assert equivalent(text, text) == bool(normalise(text))
    for score in rewards.REWARDS.values():
        assert 0.0 <= score(text, "7") <= 1.0


@given(st.text(alphabet=r"0123456789xyab+-*/^(){}[]\., =fracsqtpimpe&", max_size=60))
@calm(200)
def test_judgement_does_not_depend_on_the_order_of_the_two(text: str) -> None:
    other = "".join(reversed(text))
    assert equivalent(text, other) == equivalent(other, text)


@pytest.mark.parametrize(
    "text", ["1/0", "", "x^", "(1", "1)", "2**3", "30!!", "0^{-1}", "(-8)^{1/3}"]
)
def test_what_has_no_value_is_refused(text: str) -> None:
    with pytest.raises(UnreadableError):
        evaluate(text)


def test_irrational_values_are_floats() -> None:
    assert evaluate(r"\sqrt{2}") == math.sqrt(2)
    assert evaluate(r"\sqrt{\frac{4}{9}}") == Fraction(2, 3)
    assert evaluate("2^{0.5}") == pytest.approx(math.sqrt(2))


def test_variables_have_other_values_at_other_points() -> None:
    values = {sample(name, k) for name in "abcxyz" for k in range(3)}
    assert len(values) == 18


# Rewards -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "completion", "answer", "value"),
    [
        ("exact", "12 ", "12", 1.0),
        ("exact", "012", "12", 0.0),
        ("characters", "12", "13", 0.5),
        ("characters", "", "13", 0.0),
        ("characters", "1313", "13", 0.5),
        ("arithmetic", "= 12\n13", "12", 1.0),
        ("arithmetic", "12 13", "12", 0.0),
        ("gsm8k", "#### 12", "12", 1.0),
        ("gsm8k", "the answer is 12", "12", 0.0),
        ("gsm8k", "#### 11 #### 12", "12", 1.0),
        ("gsm8k", "#### 12 or 13", "12", 0.0),
        ("gsm8k_flexible", "the answer is 12.", "12", 1.0),
        ("gsm8k_flexible", "12 or 13", "12", 0.0),
        ("math", r"\boxed{x=2}", "2", 1.0),
        ("math", "2", "2", 0.0),
        ("math", r"\boxed{}", "2", 0.0),
        ("math", r"\boxed{2}", r"steps \boxed{2} more", 1.0),
        ("math", r"\boxed{1,2,3,4,5,6}", "2", 0.0),
    ],
)
def test_reward_of_a_completion(name: str, completion: str, answer: str, value: float) -> None:
    assert rewards.reward(name)(completion, answer) == value


def test_unknown_reward_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="gsm8k"):
        rewards.reward("gsmk8")


def test_conversations_are_judged_by_their_last_message() -> None:
    call = rewards.for_trl(rewards.math)
    talk = [{"role": "assistant", "content": r"\boxed{4}"}]
    answers = ["4", "5", "4"]
    assert call(completions=[talk, talk, r"\boxed{4}"], answer=answers, prompts=[], extra=1) == [
        *(1.0, 0.0, 1.0)
    ]
    assert call.__name__ == "math"


def test_a_column_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        rewards.for_trl(rewards.exact)(completions=["1", "2"], answer=["1"])
