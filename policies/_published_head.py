"""The action head of VLA-Adapter as published, oddities included: its checkpoints need it.

Oddities, each measured or derived from the published equations: the chunk enters as zeros, with
noise in training that a layer norm blows up to unit variance; the gate tanh(g) scales the logits
of the task keys, so that g = 0 does not close it; the rotary angles are laid out half by half but
rotated in pairs, which is no rotation; the feed-forward has no residual; a FiLM generator is never
called (38.6 M parameters in 24 blocks). The base variant has no positions at all, so that without
noise all actions of its chunk are the same. `policies.heads` has none of these.

Written from a description of shapes and equations; names of weights are those of the checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies._attention import merge_heads, split_heads

_NUM_HEADS = 8
_ROPE_BASE = 1e4
_NOISE = 0.02


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())


def pairwise_rotation(x: Tensor) -> Tensor:
    """The published "rotation" of (B, H, T, D) by position: see the module's description."""
    length, channels = x.shape[-2:]
    even = torch.arange(0, channels, 2, device=x.device, dtype=torch.float32)
    positions = torch.arange(length, device=x.device, dtype=torch.float32)
    half = positions[:, None] * _ROPE_BASE ** (-even / channels)
    angles = torch.cat([half, half], dim=-1)
    swapped = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    return x * angles.cos().to(x.dtype) + swapped * angles.sin().to(x.dtype)


class PublishedBlock(nn.Module):
    """The base block: one set of projections for chunk, adapter and task."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = _feed_forward(width)
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.gating_factor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, adapter: Tensor, task: Tensor) -> Tensor:
        """Chunk (B, K, W), adapter (B, Q + 1, W) and task tokens (B, T, W) to (B, K, W)."""
        sets = (x, adapter, task)
        keys = [split_heads(self.k_proj(s), _NUM_HEADS) for s in sets]
        values = [split_heads(self.v_proj(s), _NUM_HEADS) for s in sets]
        return self.attend(x, split_heads(self.q_proj(x), _NUM_HEADS), keys, values)

    def attend(self, x: Tensor, q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        """One softmax over the three sets, the last one's logits times tanh(g)."""
        keys = [*keys[:2], keys[2] * self.gating_factor.tanh()]
        attended = F.scaled_dot_product_attention(q, torch.cat(keys, 2), torch.cat(values, 2))
        out: Tensor = self.ffn(x + self.o_proj(merge_heads(attended)))
        return out


class PublishedProBlock(PublishedBlock):
    """The Pro block: projections of its own for each set, positions, an unused FiLM generator."""

    def __init__(self, width: int) -> None:
        nn.Module.__init__(self)
        self.ffn = _feed_forward(width)
        self.q_proj = nn.Linear(width, width)
        self.k_self, self.v_self = nn.Linear(width, width), nn.Linear(width, width)
        self.k_adapter, self.v_adapter = nn.Linear(width, width), nn.Linear(width, width)
        self.k_task, self.v_task = nn.Linear(width, width), nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)
        self.gating_factor = nn.Parameter(torch.zeros(1))
        self.film_gen = nn.Sequential(nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, adapter: Tensor, task: Tensor) -> Tensor:
        """See `PublishedBlock.forward`."""
        k_layers = (self.k_self, self.k_adapter, self.k_task)
        v_layers = (self.v_self, self.v_adapter, self.v_task)
        sets = (x, adapter, task)
        keys = [
            pairwise_rotation(split_heads(k(s), _NUM_HEADS))
            for k, s in zip(k_layers, sets, strict=True)
        ]
        values = [split_heads(v(s), _NUM_HEADS) for v, s in zip(v_layers, sets, strict=True)]
        q = pairwise_rotation(split_heads(self.q_proj(x), _NUM_HEADS))
        return self.attend(x, q, keys, values)


class PublishedL1Head(nn.Module):
    """The published head; takes what `policies.heads.L1ActionHead` takes.

    Args:
        width: channels. num_layers: blocks. chunk_size: K. action_dim: A.
        pro: which variant.
    """

    def __init__(
        self, *, width: int, num_layers: int, chunk_size: int, action_dim: int, pro: bool
    ) -> None:
        super().__init__()
        block = PublishedProBlock if pro else PublishedBlock
        self.start = (chunk_size, action_dim * width)
        self.layer_norm1 = nn.LayerNorm(action_dim * width)
        self.fc1 = nn.Linear(action_dim * width, width)
        self.mlp_resnet_blocks = nn.ModuleList(block(width) for _ in range(num_layers))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, action_dim)

    def forward(self, states: list[Tensor], mask: Tensor, num_task: int, proprio: Tensor) -> Tensor:
        """Predict actions (B, K, A); no position of ``states`` is masked."""
        del mask
        weight = self.fc1.weight
        x = torch.zeros(self.start, device=weight.device, dtype=weight.dtype)
        if self.training:
            x = x + _NOISE * torch.randn_like(x)
        x = F.relu(self.fc1(self.layer_norm1(x))).expand(len(proprio), -1, -1)
        for block, state in zip(self.mlp_resnet_blocks, states, strict=True):
            adapter = torch.cat([state[:, num_task:], proprio], dim=1)
            x = block(x, adapter, state[:, :num_task])
        out: Tensor = self.fc2(self.layer_norm2(x))
        return out
