"""Supervised steps on answers, so that a random model is sometimes right before rewards begin."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vla_opt.rlvr.config import WarmStartConfig
from vla_opt.rlvr.tasks import Example

_IGNORED = -100


def warm_start(
    model: Any, tokenizer: Any, data: Sequence[Example], config: WarmStartConfig, seed: int
) -> list[float]:
    """Train on prompt and answer; the losses of the steps.

    Args:
        model: a causal language model, changed in place.
        tokenizer: its tokenizer.
        data: questions with texts as prompts.
        config: how long and how fast.
        seed: of the order of questions.
    """
    if config.steps == 0:
        return []
    rng = random.Random(f"{seed} warm start")
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.0)
    model.train()
    losses = []
    for _ in range(config.steps):
        chosen = rng.sample(list(data), min(config.batch_size, len(data)))
        loss = answer_loss(model, tokenizer, chosen)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


def answer_loss(model: Any, tokenizer: Any, data: Sequence[Example]) -> Tensor:
    """Mean cross-entropy of the answers' tokens, the end of the text included."""
    ids, labels = _padded(tokenizer, data)
    ids, labels = ids.to(model.device), labels.to(model.device)
    logits = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=_IGNORED
    )


def _padded(tokenizer: Any, data: Sequence[Example]) -> tuple[Tensor, Tensor]:
    rows = []
    for example in data:
        prompt = tokenizer(example["prompt"])["input_ids"]
        answer = [*tokenizer(example["answer"])["input_ids"], tokenizer.eos_token_id]
        rows.append((prompt + answer, [_IGNORED] * len(prompt) + answer))
    length = max(len(ids) for ids, _ in rows)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (length - len(i)) + i for i, _ in rows])
    labels = torch.tensor([[_IGNORED] * (length - len(i)) + i for _, i in rows])
    return ids, labels
