"""From encoder features to tokens of the language model's width."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class VisionProjector(nn.Module):
    """Projects one view's feature grid to tokens with learned positions.

    Layer norm (the encoder's channels differ in scale), two linear layers, a learned embedding
    per grid position, then average pooling: pooled tokens still know where they came from.

    Args:
        channels: C of the features. width: channels of a token. grid: rows and columns.
        pooling: side of the square of positions that becomes one token; divides rows and columns.
    """

    def __init__(self, channels: int, width: int, grid: tuple[int, int], pooling: int) -> None:
        super().__init__()
        self.grid, self.pooling = grid, pooling
        self.num_tokens = (grid[0] // pooling) * (grid[1] // pooling)
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, width)
        self.act = nn.GELU()
        self.proj = nn.Linear(width, width)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, grid[0] * grid[1], width))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, T, C), any float dtype, to tokens (B, num_tokens, width)."""
        x = self.act(self.fc1(self.norm(features.to(self.fc1.weight.dtype))))
        # Averaging and `proj` are linear, so their order is free: this one multiplies less.
        tokens: Tensor = self.proj(self._pool(x)) + self._pool(self.pos_embed)
        return tokens

    def _pool(self, x: Tensor) -> Tensor:
        """Average the blocks of a grid: (B, T, width) to (B, num_tokens, width)."""
        if self.pooling == 1:
            return x
        rows, columns = (side // self.pooling for side in self.grid)
        blocks = x.unflatten(1, (rows, self.pooling, columns, self.pooling))
        return blocks.mean(4).mean(2).flatten(1, 2)


class TextProjector(nn.Module):
    """Projects the sentence vector and the word vectors to 1 + N tokens (B, 1 + N, width)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.proj = nn.Linear(channels, width)
        # Tells the sentence vector (row 0) from the word vectors (row 1).
        self.kind_embed = nn.Parameter(0.02 * torch.randn(2, width))

    def forward(self, pooled: Tensor, tokens: Tensor) -> Tensor:
        """Sentence vectors (B, C) and word vectors (B, N, C) to (B, 1 + N, width)."""
        x = self.proj(self.norm(torch.cat([pooled[:, None], tokens], dim=1)))
        return torch.cat([x[:, :1] + self.kind_embed[0], x[:, 1:] + self.kind_embed[1]], dim=1)


class ProprioProjector(nn.Sequential):
    """Linear, GELU, Linear: a normalised state (B, S) to one token (B, width)."""

    def __init__(self, state_dim: int, width: int) -> None:
        super().__init__(nn.Linear(state_dim, width), nn.GELU(), nn.Linear(width, width))
