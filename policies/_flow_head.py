"""The flow-matching head: an adaLN transformer over a noisy chunk of actions.

Block i attends to the chunk itself and to all positions of the i-th hidden state of the language
model ("soft" connection). Written from the description of VLANeXt's policy; adaptive layer norm
after Peebles & Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies._attention import FeedForward, fused_linear, merge_heads, padding_bias, split_heads

_TIME_CHANNELS = 256
_MAX_PERIOD = 1e4
_TIME_SCALE = 1000.0  # noise level 1 is time 1000, as in the schedulers the method comes from


@dataclass(frozen=True, kw_only=True)
class FlowContext:
    """What stays the same while a chunk is denoised.

    Args:
        keys_values: per block keys and values of the hidden states, each (B, heads, S, D).
        bias: (B, 1, 1, S), 0 for real positions and -inf for padding.
    """

    keys_values: list[tuple[Tensor, Tensor]]
    bias: Tensor

    def repeat(self, times: int) -> FlowContext:
        """Every observation so many times, beside one another."""
        if times == 1:
            return self
        return FlowContext(
            keys_values=[
                (k.repeat_interleave(times, 0), v.repeat_interleave(times, 0))
                for k, v in self.keys_values
            ],
            bias=self.bias.repeat_interleave(times, 0),
        )


class TimeEmbedder(nn.Module):
    """Noise levels (B,) to vectors (B, width): cosines and sines, Linear, SiLU, Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(_TIME_CHANNELS, width)
        self.fc2 = nn.Linear(width, width)
        for layer in (self.fc1, self.fc2):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, time: Tensor) -> Tensor:
        half = _TIME_CHANNELS // 2
        exponents = torch.arange(half, device=time.device, dtype=torch.float32) / half
        angles = _TIME_SCALE * time.float()[:, None] * _MAX_PERIOD**-exponents
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.fc1.weight.dtype)
        out: Tensor = self.fc2(F.silu(self.fc1(waves)))
        return out


class FlowBlock(nn.Module):
    """Attention over chunk and context, and a feed-forward, both shifted, scaled and gated by time.

    The gates start at zero: the block starts as the identity.

    Args:
        width: channels. num_heads: attention heads. hidden: feed-forward channels.
        context_width: channels of the hidden states.
        normalize_context: layer norm without parameters before the hidden states are projected;
            they grow from layer to layer. The published policy has none.
    """

    forward_methods = ("context",)  # needs the weights as `forward` does

    def __init__(
        self,
        width: int,
        num_heads: int,
        hidden: int,
        context_width: int,
        normalize_context: bool,
    ) -> None:
        super().__init__()
        self.num_heads, self.normalize_context = num_heads, normalize_context
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.vlm_proj = nn.Linear(context_width, width)
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.feed_forward = FeedForward(width, hidden, approximate="tanh")
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.xavier_uniform_(self.vlm_proj.weight)
        nn.init.zeros_(self.vlm_proj.bias)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def context(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, S, D) of a hidden state (B, S, context_width)."""
        if self.normalize_context:
            state = F.layer_norm(state, state.shape[-1:])
        k, v = fused_linear(self.vlm_proj(state), self.k_proj, self.v_proj)
        return split_heads(k, self.num_heads), split_heads(v, self.num_heads)

    def forward(
        self, x: Tensor, time: Tensor, context: tuple[Tensor, Tensor], bias: Tensor
    ) -> Tensor:
        """Update the chunk.

        Args:
            x: (B, K, width). time: (B, width), embedded. context: of `context`.
            bias: (B, 1, 1, K + S), additive.
        """
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.modulation(F.silu(time))[
            :, None
        ].chunk(6, dim=-1)
        x = x + gate_a * self._attend(modulate(self.norm(x), shift_a, scale_a), context, bias)
        return x + gate_f * self.feed_forward(modulate(self.norm(x), shift_f, scale_f))

    def _attend(self, x: Tensor, context: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
        projected = fused_linear(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (split_heads(p, self.num_heads) for p in projected)
        k, v = torch.cat([k, context[0]], dim=2), torch.cat([v, context[1]], dim=2)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        out: Tensor = self.o_proj(merge_heads(attended))
        return out


class FinalLayer(nn.Module):
    """Modulated layer norm and the output; zero at the start."""

    def __init__(self, width: int, action_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, action_dim)
        for layer in (self.modulation, self.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        shift, scale = self.modulation(F.silu(time))[:, None].chunk(2, dim=-1)
        out: Tensor = self.linear(modulate(self.norm(x), shift, scale))
        return out


class FlowHead(nn.Module):
    """Predicts the velocity of a noisy chunk of actions.

    Args:
        width: channels. depth: blocks, one per hidden state. num_heads: attention heads.
        mlp_ratio: feed-forward channels per channel.
        context_width: channels of the hidden states.
        action_dim: A, numbers per action. max_chunk: longest chunk.
        normalize_context: see `FlowBlock`.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        context_width: int,
        action_dim: int,
        max_chunk: int,
        normalize_context: bool,
    ) -> None:
        super().__init__()
        self.input_proj = nn.Linear(action_dim, width)
        nn.init.xavier_uniform_(self.input_proj.weight)
        nn.init.zeros_(self.input_proj.bias)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, max_chunk, width))
        self.t_embedder = TimeEmbedder(width)
        hidden = round(mlp_ratio * width)
        self.blocks = nn.ModuleList(
            FlowBlock(width, num_heads, hidden, context_width, normalize_context)
            for _ in range(depth)
        )
        self.final_layer = FinalLayer(width, action_dim)

    def context(self, states: list[Tensor], mask: Tensor) -> FlowContext:
        """Project the hidden states once for all steps of the sampling.

        Args:
            states: the last `depth` of them are used, each (B, S, context_width).
            mask: (B, S) bool, True where a position is real; the others are attended by none.
        """
        used = states[len(states) - len(self.blocks) :]
        blocks = (cast(FlowBlock, block) for block in self.blocks)
        pairs = [block.context(s) for block, s in zip(blocks, used, strict=True)]
        return FlowContext(keys_values=pairs, bias=padding_bias(mask))

    def forward(self, noisy: Tensor, time: Tensor, context: FlowContext) -> Tensor:
        """Velocities (B, K, A) of a chunk (B, K, A) at noise levels (B,)."""
        x = self.input_proj(noisy) + self.pos_embed[:, : noisy.shape[1]]
        embedded = self.t_embedder(time)
        bias = F.pad(context.bias, (noisy.shape[1], 0))
        for block, pair in zip(self.blocks, context.keys_values, strict=True):
            x = block(x, embedded, pair, bias)
        out: Tensor = self.final_layer(x, embedded)
        return out


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale tokens (B, K, width) by vectors (B, 1, width)."""
    return x * (1 + scale) + shift
