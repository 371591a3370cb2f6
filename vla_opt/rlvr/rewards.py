"""Rewards that a program can verify, as pure functions of a completion and the right answer.

    reward = REWARDS["gsm8k"]
    reward("... so 18 are left.\\n#### 18", "18")      # 1.0

`for_trl` turns one into the function that TRL's trainers call.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from vla_opt.errors import UnknownNameError, nearest
from vla_opt.rlvr.answers import boxed, hashed, last_number
from vla_opt.rlvr.equivalence import equivalent, same_number

Score = Callable[[str, str], float]


def exact(completion: str, answer: str) -> float:
    """1 if the completion is the answer, spaces around it aside.

    >>> exact(" 12\\n", "12"), exact("12 or 13", "12")
    (1.0, 0.0)
    """
    return float(completion.strip() == answer.strip())


def characters(completion: str, answer: str) -> float:
    """Share of positions that agree, of the longer text: a reward that a random start can climb.

    >>> characters("abcx", "abcd"), characters("abcdabcd", "abcd")
    (0.75, 0.5)
    """
    given, expected = completion.strip(), answer.strip()
    agree = sum(a == b for a, b in zip(given, expected, strict=False))
    return agree / max(len(given), len(expected), 1)


def arithmetic(completion: str, answer: str) -> float:
    """1 if the first line is the right number, whatever way it is written.

    >>> arithmetic(" 1,200.0\\n", "1200"), arithmetic("1200 or 1300", "1200")
    (1.0, 0.0)
    """
    return float(same_number(completion.strip().partition("\n")[0].lstrip("= "), answer))


def gsm8k(completion: str, answer: str) -> float:
    """1 if the number after the last `####` is right; the answer may be a whole solution.

    No mark, no reward: with the last number of the text instead (`gsm8k_flexible`), a model is
    paid for listing numbers.

    >>> gsm8k("7 * 9 = 63\\n#### $63.00", "7*9=63\\n#### 63"), gsm8k("63", "63")
    (1.0, 0.0)
    """
    given = hashed(completion)
    return float(given is not None and same_number(given, hashed(answer) or answer))


def gsm8k_flexible(completion: str, answer: str) -> float:
    """As `gsm8k`, but where there is no `####` the last number counts.

    >>> gsm8k_flexible("They have 63 apples.", "63")
    1.0
    """
    given = hashed(completion) or last_number(completion)
    return float(given is not None and same_number(given, hashed(answer) or answer))


def math(completion: str, answer: str) -> float:
    r"""1 if the last `\boxed{...}` is equivalent to the answer, which may be a whole solution.

    >>> math(r"so \boxed{\dfrac{3}{4}}", r"it is $\boxed{0.75}$.")
    1.0
    """
    given = boxed(completion)
    expected = boxed(answer) if "boxed" in answer else answer
    return float(given is not None and expected is not None and equivalent(given, expected))


REWARDS: Mapping[str, Score] = MappingProxyType(
    {
        "exact": exact,
        "characters": characters,
        "arithmetic": arithmetic,
        "gsm8k": gsm8k,
        "gsm8k_flexible": gsm8k_flexible,
        "math": math,
    }
)


def reward(name: str) -> Score:
    """A reward by name.

    Raises:
        UnknownNameError: there is none; the nearest is named.
    """
    if name not in REWARDS:
        raise UnknownNameError(f"unknown reward '{name}'.{nearest(name, REWARDS)}")
    return REWARDS[name]


def for_trl(score: Score) -> Callable[..., list[float]]:
    """The function that TRL's trainers call, with the data's column `answer`.

    Completions may be texts or conversations, of which the last message counts.

    >>> for_trl(exact)(prompts=["1+1="], completions=["2"], answer=["2"])
    [1.0]
    """

    def rewards(
        *, completions: Sequence[Any], answer: Sequence[str], **_columns: object
    ) -> list[float]:
        pairs = zip(completions, answer, strict=True)
        return [score(text_of(completion), expected) for completion, expected in pairs]

    rewards.__name__ = getattr(score, "__name__", "reward")
    return rewards


def text_of(completion: Any) -> str:
    """The text of a completion, plain or as a conversation."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"]) if completion else ""
