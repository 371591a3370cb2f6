"""The bridge-attention head and the language model."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from policies._attention import fused_linear, merge_heads, split_heads
from policies._tokens import VisionProjector
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


def _block_by_definition(block: BridgeBlock, x: Tensor, context: Tensor, bias: Tensor) -> Tensor:
    """Keys and values of every token, then one attention over all sets."""
    normed, queries = block.context_norm(context), block.attention_norm(x)
    task, adapter = normed[:, :TASK], normed[:, TASK:]
    q, k, v = fused_linear(queries, block.q_proj, block.k_self, block.v_self)
    kinds = ("self", "self") if block.share_keys else ("adapter", "task")
    for kind, tokens in zip(kinds, (adapter, task), strict=True):
        k = torch.cat([k, getattr(block, f"k_{kind}")(tokens)], dim=1)
        v = torch.cat([v, getattr(block, f"v_{kind}")(tokens)], dim=1)
    others = F.pad(bias[..., TASK:], (CHUNK, 0))
    mask = torch.cat([others, bias[..., :TASK] + block.gate], dim=-1)
    q, k, v = (split_heads(part, block.num_heads) for part in (q, k, v))
    x = x + block.o_proj(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))
    out: Tensor = x + block.feed_forward(block.feed_forward_norm(x))
    return out


@pytest.mark.parametrize("share_keys", [False, True])
def test_block_is_attention_over_the_keys_of_every_token(share_keys: bool) -> None:
    block = BridgeBlock(WIDTH, 2, 64, -1.0, share_keys).double()
    x, context, bias = (part.double() for part in _context())
    bias[:, :, :, 3:7] = float("-inf")
    bias[1, :, :, TASK - 2 : TASK] = float("-inf")
    gradients = []
    for run in (
        lambda: block(x, context, bias, TASK),
        lambda: _block_by_definition(block, x, context, bias),
    ):
        out = run()
        gradients.append([out, *torch.autograd.grad(out.cos().sum(), block.parameters())])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


def test_pooled_tokens_are_means_of_projected_positions() -> None:
    pooled = VisionProjector(12, WIDTH, (4, 6), 2).double()
    whole = VisionProjector(12, WIDTH, (4, 6), 1).double()
    whole.load_state_dict(pooled.state_dict())
    features = torch.randn(3, 24, 12).half()
    grid = whole(features).unflatten(1, (4, 6)).movedim(-1, 1)
    expected = F.avg_pool2d(grid, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pooled(features), expected, rtol=1e-10, atol=1e-11)


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


def test_aligned_rows_of_training_are_the_same_function_as_evaluations_own() -> None:
    size = LanguageModelSize(width=16, num_layers=2, num_heads=2, hidden=32)
    model = build_language_model("transformer", size).double()
    tokens, mask = torch.randn(2, 11, 16).double(), torch.ones(2, 11, dtype=torch.bool)
    mask[1, 7:] = False
    training = model.train()(tokens, mask)
    for one, other in zip(training, model.eval()(tokens, mask), strict=True):
        assert one.shape == tokens.shape
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
