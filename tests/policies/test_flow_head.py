"""The flow head: published size, identity at the start, padding, and cached context."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from policies._flow_head import FlowBlock, FlowHead

WIDTH, CONTEXT = 16, 24


def _head(**changes: object) -> FlowHead:
    sizes = {
        "width": WIDTH,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "context_width": CONTEXT,
        "action_dim": 3,
        "max_chunk": 6,
        "normalize_context": False,
    }
    return FlowHead(**{**sizes, **changes})  # type: ignore[arg-type]


def _awake(head: FlowHead) -> FlowHead:
    """With weights where zeros are, so that everything has an effect."""
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def _states(count: int = 3) -> tuple[list[torch.Tensor], torch.Tensor]:
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:] = False
    return [torch.randn(2, 9, CONTEXT) for _ in range(count)], mask


def test_full_size_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        head = FlowHead(
            width=1024,
            depth=29,
            num_heads=16,
            mlp_ratio=4.0,
            context_width=2048,
            action_dim=7,
            max_chunk=256,
            normalize_context=False,
        )
    assert sum(p.numel() for p in head.blocks[0].parameters()) == 20_987_904
    assert sum(p.numel() for p in head.parameters()) == 612_338_695


def test_head_starts_at_zero_velocity_and_block_as_identity() -> None:
    head, (states, mask) = _head(), _states()
    context = head.context(states, mask)
    assert not head(torch.randn(2, 5, 3), torch.rand(2), context).any()
    x = torch.randn(2, 5, WIDTH)
    bias = F.pad(context.bias, (5, 0))
    assert torch.equal(head.blocks[0](x, torch.randn(2, WIDTH), context.keys_values[0], bias), x)


def test_padded_positions_change_nothing() -> None:
    head, (states, mask) = _awake(_head()), _states()
    noisy, time = torch.randn(2, 5, 3), torch.rand(2)
    before = head(noisy, time, head.context(states, mask))
    for state in states:
        state[~mask] = 50.0
    assert torch.equal(head(noisy, time, head.context(states, mask)), before)
    for state in states:
        state[mask] += 1.0
    assert not torch.allclose(head(noisy, time, head.context(states, mask)), before)


def test_last_states_are_used_one_per_block() -> None:
    head, (states, mask) = _awake(_head()), _states(3)
    noisy, time = torch.randn(2, 5, 3), torch.rand(2)
    before = head(noisy, time, head.context(states, mask))
    first_changed = [states[0] + 9.0, *states[1:]]
    assert torch.equal(head(noisy, time, head.context(first_changed, mask)), before)
    last_changed = [*states[:2], states[2] + torch.randn_like(states[2])]
    assert not torch.equal(head(noisy, time, head.context(last_changed, mask)), before)


def test_block_is_modulated_attention_over_chunk_and_context() -> None:
    """Against the equations, with torch's own multi-head attention."""
    block = FlowBlock(WIDTH, 2, 32, CONTEXT, normalize_context=False)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    reference = torch.nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    with torch.no_grad():
        projections = (block.q_proj, block.k_proj, block.v_proj)
        reference.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        reference.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        reference.out_proj.load_state_dict(block.o_proj.state_dict())
    x, time, state = torch.randn(2, 5, WIDTH), torch.randn(2, WIDTH), torch.randn(2, 9, CONTEXT)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 6:] = False
    bias = torch.zeros(2, 1, 1, 14).masked_fill(F.pad(~mask, (5, 0))[:, None, None], -torch.inf)

    found = block(x, time, block.context(state), bias)

    parts = (block.modulation(F.silu(time)))[:, None].chunk(6, dim=-1)
    shifted = F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + parts[1]) + parts[0]
    keys = torch.cat([shifted, block.vlm_proj(state)], dim=1)
    attended, _ = reference(shifted, keys, keys, key_padding_mask=F.pad(~mask, (5, 0)))
    y = x + parts[2] * attended
    shifted = F.layer_norm(y, (WIDTH,), eps=1e-6) * (1 + parts[4]) + parts[3]
    inner = F.gelu(block.feed_forward.up_proj(shifted), approximate="tanh")
    torch.testing.assert_close(found, y + parts[5] * block.feed_forward.down_proj(inner))


@pytest.mark.parametrize("time", [0.0, 0.25, 1.0])
def test_time_embedding_tells_times_apart(time: float) -> None:
    embedder = _head().t_embedder
    ours, other = embedder(torch.tensor([time])), embedder(torch.tensor([time + 0.01]))
    assert (ours - other).abs().max() > 1e-4
