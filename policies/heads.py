"""Bridge attention and the l1 regression head of VLA-Adapter.

One block per language-model layer. A block updates one token per step of the action chunk from
three sets of keys: the chunk itself, the adapter set (the layer's ActionQuery states and the
proprioception token) and the task set (the layer's vision and text states).

Source: Wang et al., "VLA-Adapter", arXiv 2509.09372, section 3. Differences from the published
code and their reasons are in docs/policies.md.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies._attention import (
    FeedForward,
    fused_linear,
    logits_of_tokens,
    mean_of_tokens,
    merge_heads,
    padding_bias,
    split_heads,
)


class BridgeBlock(nn.Module):
    """One residual bridge-attention block and one residual feed-forward.

    All keys share one softmax; the gate g is added to the logits of the task set, so exp(g) is the
    prior weight of one task key against one key of the other sets. Unlike a factor tanh(g) on
    logits (the published code: at g = 0 the task keys keep uniform attention and receive no
    gradient through their keys) or on values, every weight receives a gradient from the first
    step, and the start is gentle: with the initial g the task set as a whole weighs as much as the
    adapter set, not ten times more because it has ten times more keys.

    Args:
        width: channels. num_heads: attention heads. hidden: feed-forward channels.
        gate: initial g.
        share_keys: one key and one value projection for all three sets instead of three.
    """

    def __init__(
        self, width: int, num_heads: int, hidden: int, gate: float, share_keys: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width)
        self.k_self, self.v_self = nn.Linear(width, width), nn.Linear(width, width)
        self.share_keys = share_keys
        if not share_keys:
            self.k_adapter, self.v_adapter = nn.Linear(width, width), nn.Linear(width, width)
            self.k_task, self.v_task = nn.Linear(width, width), nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)
        self.gate = nn.Parameter(torch.tensor([gate]))
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor, num_task: int) -> Tensor:
        """Update the chunk's tokens.

        Args:
            x: (B, K, width), one token per action of the chunk.
            context: (B, S, width), task tokens first, then ActionQueries, then proprioception.
            bias: (B, 1, 1, S), 0 for real context tokens and -inf for padding.
            num_task: how many of the S are task tokens.
        """
        attended = merge_heads(self._attend(self.attention_norm(x), context, bias, num_task))
        x = x + self.o_proj(attended)
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out

    def _attend(self, x: Tensor, context: Tensor, bias: Tensor, num_task: int) -> Tensor:
        context = self.context_norm(context)
        task, adapter = context.split([num_task, context.shape[1] - num_task], dim=1)
        q, k_self, v_self = fused_linear(x, self.q_proj, self.k_self, self.v_self)
        k_adapter, v_adapter = fused_linear(adapter, *self._projections("adapter"))
        k = split_heads(torch.cat([k_self, k_adapter], dim=1), self.num_heads)
        v = split_heads(torch.cat([v_self, v_adapter], dim=1), self.num_heads)
        q = split_heads(q * (q.shape[-1] // self.num_heads) ** -0.5, self.num_heads)
        k_task, v_task = self._projections("task")
        bias_near = F.pad(bias[..., num_task:], (x.shape[1], 0)).to(q.dtype)
        bias_far = (bias[..., :num_task] + self.gate).to(q.dtype)
        near = q @ k.transpose(-1, -2) + bias_near
        far = logits_of_tokens(q, task, k_task) + bias_far
        weights = torch.cat([near, far], dim=-1).softmax(-1)
        near, far = weights.split([near.shape[-1], num_task], dim=-1)
        return near @ v + mean_of_tokens(far, task, v_task)

    def _projections(self, keys: str) -> tuple[nn.Linear, nn.Linear]:
        """Key and value projection of a set of keys."""
        if self.share_keys:
            return self.k_self, self.v_self
        return getattr(self, f"k_{keys}"), getattr(self, f"v_{keys}")


class L1ActionHead(nn.Module):
    """Regresses a chunk of actions from the language model's layers.

    Args:
        width: channels. num_heads: attention heads. hidden: feed-forward channels.
        num_layers: language-model layers, one block for each.
        chunk_size: K, actions per chunk. action_dim: A, numbers per action.
        task_to_adapter: number of task keys per adapter key; sets the initial gate.
        share_keys: see `BridgeBlock`.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        hidden: int,
        num_layers: int,
        chunk_size: int,
        action_dim: int,
        task_to_adapter: float,
        share_keys: bool = False,
    ) -> None:
        super().__init__()
        gate = -math.log(task_to_adapter)
        self.queries = nn.Parameter(0.02 * torch.randn(1, chunk_size, width))
        self.blocks = nn.ModuleList(
            BridgeBlock(width, num_heads, hidden, gate, share_keys) for _ in range(num_layers)
        )
        self.output_norm = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, action_dim)

    def forward(self, states: list[Tensor], mask: Tensor, num_task: int, proprio: Tensor) -> Tensor:
        """Predict actions.

        Args:
            states: per layer (B, S, width), task tokens first, then ActionQueries.
            mask: (B, S) bool, True where a token is real.
            num_task: how many of the S are task tokens.
            proprio: (B, 1, width), the proprioception token.

        Returns:
            (B, K, A).
        """
        bias = F.pad(padding_bias(mask), (0, 1))
        x = self.queries.expand(len(mask), -1, -1)
        for block, state in zip(self.blocks, states, strict=True):
            x = block(x, torch.cat([state, proprio], dim=1), bias, num_task)
        out: Tensor = self.fc2(self.output_norm(x))
        return out
