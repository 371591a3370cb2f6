"""The bridge-attention head and the language model."""

from __future__ import annotations

import math

import pytest
import torch

from policies.heads import BridgeBlock, L1ActionHead
from policies.language_models import LanguageModelSize, build_language_model

WIDTH, TASK, QUERIES, CHUNK = 32, 20, 4, 5


def _context() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(2, CHUNK, WIDTH)
    return x, torch.randn(2, TASK + QUERIES + 1, WIDTH), torch.zeros(2, 1, 1, TASK + QUERIES + 1)


def test_initial_gate_gives_task_and_adapter_sets_equal_weight() -> None:
    head = L1ActionHead(
        width=WIDTH,
        num_heads=2,
        hidden=64,
        num_layers=1,
        chunk_size=CHUNK,
        action_dim=7,
        task_to_adapter=TASK / (QUERIES + 1),
    )
    gate = head.blocks[0].gate.item()
    assert TASK * math.exp(gate) == pytest.approx(QUERIES + 1)


@pytest.mark.parametrize("gate", [-30.0, 30.0])
def test_gate_closes_the_task_set_or_lets_nothing_else_through(gate: float) -> None:
    block = BridgeBlock(WIDTH, 2, 64, gate)
    x, context, bias = _context()
    before = block(x, context, bias, TASK)
    task_changed = context.clone()
    task_changed[:, :TASK] += 1.0 * torch.randn(2, TASK, WIDTH)
    adapter_changed = context.clone()
    adapter_changed[:, TASK:] += 1.0 * torch.randn(2, QUERIES + 1, WIDTH)
    task_effect = (block(x, task_changed, bias, TASK) - before).abs().max()
    adapter_effect = (block(x, adapter_changed, bias, TASK) - before).abs().max()
    small, large = (task_effect, adapter_effect) if gate < 0 else (adapter_effect, task_effect)
    assert small < 1e-6
    assert large > 1e-2


def test_every_weight_of_a_block_learns_from_the_first_step() -> None:
    block = BridgeBlock(WIDTH, 2, 64, -2.0)
    x, context, bias = _context()
    block(x, context, bias, TASK).square().sum().backward()
    # A key bias shifts all logits of its own set alike; it still acts through the other sets.
    still = [n for n, p in block.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_masked_tokens_change_nothing() -> None:
    size = LanguageModelSize(width=WIDTH, num_layers=2, num_heads=2, hidden=64)
    model = build_language_model("transformer", size)
    tokens, mask = torch.randn(2, 9, WIDTH), torch.ones(2, 9, dtype=torch.bool)
    mask[:, 4:6] = False
    before = model(tokens, mask)
    tokens[:, 4:6] = 100.0
    after = model(tokens, mask)
    assert len(after) == 2
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[mask], new[mask])
