"""Tokens are counted where they enter the language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vla_opt._token_count import TokenCount


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.language_model = nn.Identity()  # inside another of the same name: not counted twice

    def forward(self, mask: Tensor, inputs_embeds: Tensor) -> Tensor:
        return self.language_model(inputs_embeds)


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.language_model = Tower()

    def forward(self, tokens: Tensor) -> Tensor:
        mask = torch.ones(tokens.shape[0], 1, tokens.shape[1], dtype=torch.bool)
        return self.language_model(mask, inputs_embeds=tokens)


def test_tokens_of_all_calls_since_the_last_question() -> None:
    policy = Policy()
    count = TokenCount(policy)
    policy(torch.zeros(2, 5, 3))
    policy(torch.zeros(1, 7, 3))
    assert count.take() == 2 * 5 + 7
    assert count.take() == 0


def test_policy_without_language_model_has_none() -> None:
    layer = nn.Linear(3, 3)
    count = TokenCount(layer)
    layer(torch.zeros(2, 5, 3))
    assert count.take() == 0
