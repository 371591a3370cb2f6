"""How often a model is right on questions it was never trained on, without sampling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vla_opt.evaluation.statistics import format_rate, wilson
from vla_opt.rlvr.rewards import Score
from vla_opt.rlvr.tasks import Example


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Right answers among questions.

    Attributes:
        right: questions with full reward.
        questions: all.
        reward: mean reward; other than the share of right ones where rewards have steps.
    """

    right: int
    questions: int
    reward: float

    def row(self) -> dict[str, Any]:
        """JSON-able, with the 95 % Wilson interval."""
        low, high = wilson(self.right, self.questions)
        return {
            "right": self.right,
            "questions": self.questions,
            "reward": self.reward,
            "low": low,
            "high": high,
        }

    def __str__(self) -> str:
        """As `k/n`, with per cent and interval."""
        return format_rate(self.right, self.questions)


@torch.no_grad()
def accuracy(
    model: Any,
    tokenizer: Any,
    data: Sequence[Example],
    score: Score,
    *,
    max_tokens: int,
    batch_size: int = 128,
    chat_options: Mapping[str, bool] | None = None,
) -> Accuracy:
    """Answer every question with the likeliest tokens, and judge the answers.

    Args:
        model: a causal language model; its mode is put back.
        tokenizer: its tokenizer, padding on the left.
        data: questions, as texts or conversations.
        score: the reward.
        max_tokens: length at which an answer is cut off.
        batch_size: questions at a time.
        chat_options: for the tokenizer's chat template.
    """
    training, rewards = model.training, []
    model.eval()
    for start in range(0, len(data), batch_size):
        part = data[start : start + batch_size]
        texts = [_text(tokenizer, example["prompt"], chat_options or {}) for example in part]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        tokens = model.generate(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers = tokenizer.batch_decode(
            tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        rewards += [score(text, row["answer"]) for text, row in zip(answers, part, strict=True)]
    model.train(training)
    right = sum(value >= 1.0 for value in rewards)
    return Accuracy(right=right, questions=len(data), reward=sum(rewards) / max(1, len(rewards)))


def _text(tokenizer: Any, prompt: Any, options: Mapping[str, bool]) -> str:
    if isinstance(prompt, str):
        return prompt
    text = tokenizer.apply_chat_template(
        prompt, tokenize=False, add_generation_prompt=True, **options
    )
    return str(text)
