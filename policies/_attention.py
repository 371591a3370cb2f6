"""What the language model and the action head share: fused projections, heads, feed-forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fused_linear(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """Apply several linear layers to one input with one matrix product.

    The weights stay separate parameters (an optimizer may treat queries, keys and values, or
    their heads, apart); only the product is shared.

    Args:
        x: (..., in).
        layers: linear layers with biases and ``in`` input features.

    Returns:
        one (..., out) per layer.
    """
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    return F.linear(x, weight, bias).split([layer.out_features for layer in layers], dim=-1)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, S, H * D) to (B, H, S, D)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, S, D) to (B, S, H * D)."""
    return x.transpose(1, 2).flatten(2)


def logits_of_tokens(q: Tensor, tokens: Tensor, keys: nn.Linear) -> Tensor:
    """Dot products of queries with the keys of tokens, without computing the keys.

    q (W x + b) = (q W) x + q b: where few queries look at many tokens, projecting the queries
    back to the tokens' channels is less work than projecting the tokens to keys.

    Args:
        q: (B, H, K, D), scaled. tokens: (B, T, C). keys: the projection, C to H * D.

    Returns:
        (B, H, K, T).
    """
    heads = q.shape[1]
    weight, bias = keys.weight.unflatten(0, (heads, -1)), keys.bias.unflatten(0, (heads, -1))
    looking_for = torch.einsum("bhkd,hdc->bhkc", q, weight)
    dots = looking_for.flatten(1, 2) @ tokens.transpose(1, 2)
    return dots.unflatten(1, q.shape[1:3]) + torch.einsum("bhkd,hd->bhk", q, bias)[..., None]


def mean_of_tokens(weights: Tensor, tokens: Tensor, values: nn.Linear) -> Tensor:
    """Weighted sums of the values of tokens, without computing the values; see `logits_of_tokens`.

    Args:
        weights: (B, H, K, T), their sums need not be 1. tokens: (B, T, C).
        values: the projection, C to H * D.

    Returns:
        (B, H, K, D).
    """
    heads = weights.shape[1]
    weight, bias = values.weight.unflatten(0, (heads, -1)), values.bias.unflatten(0, (heads, -1))
    seen = (weights.flatten(1, 2) @ tokens).unflatten(1, weights.shape[1:3])
    return torch.einsum("bhkc,hdc->bhkd", seen, weight) + weights.sum(-1, True) * bias[:, None]


def padding_bias(mask: Tensor) -> Tensor:
    """Turn a mask (B, S), True where a token is real, into an additive one (B, 1, 1, S)."""
    bias = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))
    return bias[:, None, None, :]


class FeedForward(nn.Module):
    """Linear, GELU, Linear: (..., width) to (..., width); "tanh" chooses GELU's approximation."""

    def __init__(self, width: int, hidden: int, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate
        self.up_proj = nn.Linear(width, hidden)
        self.down_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.gelu(self.up_proj(x), approximate=self.approximate))
        return out
