"""Questions with answers that a program can check: drawn here, or read from a data set.

A question is training or held out by a hash of its characters, so that none is both, whatever the
seed and however many are drawn; nor is 34+12 in one split and 12+34 in the other. Published data
sets come with splits of their own.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from vla_opt.errors import ConfigError, UnknownNameError, nearest
from vla_opt.rlvr.answers import boxed, hashed
from vla_opt.rlvr.rewards import reward

Example = dict[str, Any]
"""`prompt`: a text or a conversation; `answer`: a text."""

_HELD_OUT = 8  # one in so many questions


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What is asked, and when an answer is right.

    Attributes:
        name: "addition", "modular" (a+b mod 10), "copy" or "reverse", made here; "gsm8k" or
            "math", read from `source`.
        reward: of `vla_opt.rlvr.REWARDS`; the task's own if not given.
        digits: length of the numbers or texts of tasks made here.
        examples: questions to train on; 0 = all of `source`.
        held_out: questions that are never trained on, for evaluation; 0 = all of the test split.
        source: for "gsm8k" and "math": a `.jsonl` or `.parquet` file, of which one question in
            eight is held out; a folder with train and test files; or a hub name. The published
            data set if not given.
        test_source: another source of the questions that are held out; all its levels.
        levels: of "math", such as [3, 4, 5]; empty = all.

    Raises:
        UnknownNameError: no such task or reward; the nearest is named.
        ValueError: a number is out of range.
    """

    name: str = "addition"
    reward: str | None = None
    digits: int = 2
    examples: int = 2048
    held_out: int = 200
    source: str | None = None
    test_source: str | None = None
    levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the values."""
        if self.name not in _TASKS:
            raise UnknownNameError(f"unknown task '{self.name}'.{nearest(self.name, _TASKS)}")
        reward(self.reward_name)
        least = 0 if self.name in PUBLISHED else 1
        for key, at_least in (("digits", 1), ("examples", least), ("held_out", least)):
            if getattr(self, key) < at_least:
                raise ValueError(f"task.{key}={getattr(self, key)}: expected >= {at_least}.")

    @property
    def reward_name(self) -> str:
        """The reward that is given."""
        return self.reward or _TASKS[self.name]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A data set as its authors publish it.

    Attributes:
        hub: where it is.
        subset: its configuration on the hub.
        question: column of the question.
        answer: column of the solution or answer.
        instruction: what is asked beside the question.
    """

    hub: str
    subset: str | None
    question: str
    answer: str
    instruction: str


PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "gsm8k": Published(
            hub="openai/gsm8k",
            subset="main",
            question="question",
            answer="answer",
            instruction="Reason step by step. Finish with a line that holds #### and the number.",
        ),
        "math": Published(
            hub="DigitalLearningGmbH/MATH-lighteval",
            subset=None,
            question="problem",
            answer="solution",
            instruction=r"Reason step by step. Put the final answer in \boxed{}.",
        ),
    }
)

Split = Literal["train", "test"]


def examples(config: TaskConfig, split: Split, seed: int) -> list[Example]:
    """The questions of a split.

    Args:
        config: which.
        split: "train", or "test" for those that are never trained on.
        seed: of the questions that are drawn here.

    Raises:
        ConfigError: a data set cannot be read, or there are fewer different questions than asked.
    """
    wanted = config.examples if split == "train" else config.held_out
    if config.name in PUBLISHED:
        return _read(config, split)[: wanted or None]
    found: dict[str, Example] = {}
    drawn = _drawn(config, random.Random(f"{seed} {split}"))
    for example in islice(drawn, 60 * wanted + 10_000):
        if is_held_out(example["prompt"]) == (split == "test"):
            found.setdefault(example["prompt"], example)
        if len(found) == wanted:
            return list(found.values())
    raise ConfigError(
        f"task {config.name} with digits={config.digits} has only {len(found)} different questions "
        f"to {split}, {wanted} were asked for: lower task.examples and task.held_out, or raise "
        "task.digits."
    )


def is_held_out(question: str) -> bool:
    """Whether a question belongs to the test split, with all that have its characters."""
    return hashlib.sha256("".join(sorted(question)).encode()).digest()[0] % _HELD_OUT == 0


def _drawn(config: TaskConfig, rng: random.Random) -> Iterator[Example]:
    """Questions without end; with few digits they repeat."""
    while True:
        question, answer = _QUESTIONS[config.name](rng, config.digits)
        yield {"prompt": question, "answer": answer}


def _addition(rng: random.Random, digits: int) -> tuple[str, str]:
    a, b = (rng.randrange(10**digits) for _ in range(2))
    return f"{a}+{b}=", str(a + b)


def _modular(rng: random.Random, digits: int) -> tuple[str, str]:
    a, b = (rng.randrange(10**digits) for _ in range(2))
    return f"{a}+{b}=", str((a + b) % 10)


def _copy(rng: random.Random, digits: int) -> tuple[str, str]:
    text = "".join(rng.choice("0123456789") for _ in range(digits))
    return f"{text}=", text


def _reverse(rng: random.Random, digits: int) -> tuple[str, str]:
    question, text = _copy(rng, digits)
    return question, text[::-1]


_QUESTIONS: Mapping[str, Callable[[random.Random, int], tuple[str, str]]] = MappingProxyType(
    {"addition": _addition, "modular": _modular, "copy": _copy, "reverse": _reverse}
)
# Each task with its own reward.
_TASKS: Mapping[str, str] = MappingProxyType(
    {
        "addition": "arithmetic",
        "modular": "arithmetic",
        "copy": "exact",
        "reverse": "exact",
        "gsm8k": "gsm8k",
        "math": "math",
    }
)


def _read(config: TaskConfig, split: Split) -> list[Example]:
    published = PUBLISHED[config.name]
    if split == "test" and config.test_source:
        return [_conversation(published, row) for row in _rows(config.test_source, published, None)]
    rows = _rows(config.source or published.hub, published, split)
    return [
        _conversation(published, row)
        for row in rows
        if not config.levels or _level(row) in config.levels
    ]


def _conversation(published: Published, row: Mapping[str, Any]) -> Example:
    solution = str(row[published.answer])
    answer = hashed(solution) or boxed(solution) or solution
    content = f"{row[published.question]}\n\n{published.instruction}"
    return {"prompt": [{"role": "user", "content": content}], "answer": answer}


def _level(row: Mapping[str, Any]) -> int:
    """`Level 3` and 3 are both in use."""
    return int(str(row["level"]).rpartition(" ")[2])


def _rows(source: str, published: Published, split: Split | None) -> list[Mapping[str, Any]]:
    """The rows of a split; of a source that is held out as a whole (None), all of them."""
    import datasets

    try:
        path = Path(source)
        if path.is_file():
            kind = "json" if path.suffix in (".json", ".jsonl") else path.suffix.lstrip(".")
            found = datasets.load_dataset(kind, data_files=str(path), split="train")
            if split is not None:
                test = split == "test"
                found = [row for row in found if is_held_out(row[published.question]) == test]
        else:
            subset = published.subset if source == published.hub else None
            found = datasets.load_dataset(source, subset, split=split or "test")
        rows: list[Mapping[str, Any]] = [dict(row) for row in found]
        _ = [(row[published.question], row[published.answer]) for row in rows[:1]]
    except (OSError, ValueError, KeyError, ConnectionError) as error:
        raise ConfigError(
            f"task.source={source!r} cannot be read ({type(error).__name__}: {error}). Give a "
            f".jsonl or .parquet file with columns {published.question!r} and "
            f"{published.answer!r}, a folder with train and test files, or a hub name that can be "
            "reached."
        ) from error
    return rows
