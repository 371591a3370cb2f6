"""The sequence model over [vision tokens | text tokens | ActionQueries].

What the policy asks of one is its hidden states after every layer: the action head has one block
per layer and reads each. A pretrained decoder (Qwen2.5, later) enters through `LANGUAGE_MODELS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from policies._attention import FeedForward, fused_linear, merge_heads, padding_bias, split_heads
from policies._registry import Registry


@dataclass(frozen=True, kw_only=True)
class LanguageModelSize:
    """Sizes of a language model: channels, layers, attention heads, feed-forward channels."""

    width: int
    num_layers: int
    num_heads: int
    hidden: int


class LanguageModel(Protocol):
    """A sequence model, also an ``nn.Module``, with ``num_layers`` layers of ``width`` channels."""

    width: int
    num_layers: int

    def __call__(self, tokens: Tensor, mask: Tensor) -> list[Tensor]:
        """Hidden states after each layer.

        Args:
            tokens: (B, S, width).
            mask: (B, S) bool, True where a token is real; the others are attended by none.

        Returns:
            num_layers tensors (B, S, width).
        """
        ...


LANGUAGE_MODELS: Registry[Callable[[LanguageModelSize], LanguageModel]] = Registry("language model")


def build_language_model(name: str, size: LanguageModelSize) -> LanguageModel:
    """Build the language model registered as ``name``.

    Raises:
        UnknownNameError: no such language model; names the nearest.
    """
    return LANGUAGE_MODELS[name](size)


# In training tokens are padded to a multiple of this many: rows of attention that fill a CPU's
# registers cost a quarter less than rows with a remainder, though there are more of them. Not in
# evaluation, which promises an observation the same bits in any company: with padded tokens
# matrix products were seen to round a sample by its place in the batch.
_ALIGNED = 8


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and feed-forward, both residual."""

    def __init__(self, size: LanguageModelSize) -> None:
        super().__init__()
        width = size.width
        self.num_heads = size.num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, size.hidden)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Tokens (B, S, width) with the additive key bias (B, 1, 1, S) to (B, S, width)."""
        projected = fused_linear(self.attention_norm(x), self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (split_heads(p, self.num_heads) for p in projected)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = x + self.o_proj(merge_heads(attended))
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out


@LANGUAGE_MODELS.register("transformer")
class Transformer(nn.Module):
    """A small bidirectional transformer; positions are in the tokens, as learned embeddings."""

    def __init__(self, size: LanguageModelSize) -> None:
        super().__init__()
        self.width = size.width
        self.num_layers = size.num_layers
        self.layers = nn.ModuleList(TransformerLayer(size) for _ in range(size.num_layers))

    def forward(self, tokens: Tensor, mask: Tensor) -> list[Tensor]:
        """See `LanguageModel.__call__`."""
        length = tokens.shape[1]
        extra = -length % _ALIGNED if self.training else 0
        tokens, mask = F.pad(tokens, (0, 0, 0, extra)), F.pad(mask, (0, extra))
        bias = padding_bias(mask)
        states: list[Tensor] = []
        for layer in self.layers:
            tokens = layer(tokens, bias)
            states.append(tokens[:, :length])
        return states
