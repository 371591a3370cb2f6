"""Sizes of pi_0.5. lerobot has one vision tower, and language models of two sizes, written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

FULL = "full"


@dataclass(frozen=True, kw_only=True)
class Pi05Size:
    """Sizes of the towers; both language towers attend together, and share heads and depth.

    Args:
        vocabulary: words of the tokenizer. depth, heads, kv_heads, head_dim: of both towers.
        width, hidden: channels and feed-forward channels of the language model.
        expert_width, expert_hidden: the same of the action expert.
        vision_width, vision_depth, vision_heads, vision_hidden: of the vision tower.
        patch: side of a vision token in pixels.
    """

    vocabulary: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    hidden: int
    expert_width: int
    expert_hidden: int
    vision_width: int
    vision_depth: int
    vision_heads: int
    vision_hidden: int
    patch: int


SIZES: Mapping[str, Pi05Size] = MappingProxyType(
    {
        # Made to be trained from random weights on one CPU; the words are MiniLM's.
        "embedded": Pi05Size(
            vocabulary=30_522,
            depth=4,
            heads=8,  # as lerobot has it written down
            kv_heads=1,
            head_dim=16,
            width=128,
            hidden=256,
            expert_width=128,
            expert_hidden=256,
            vision_width=96,
            vision_depth=2,
            vision_heads=4,
            vision_hidden=192,
            patch=16,
        ),
    }
)
