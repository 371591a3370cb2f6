"""Qwen3-VL from inside: its sizes, its patches and its positions.

transformers' processor works on files and lists on the CPU; here images are tensors already, and
proprioception and queries stand in the sequence, of which the processor knows nothing.

Source: Qwen3-VL technical report, arXiv 2511.21631; M-RoPE, arXiv 2409.12191, section 2.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from policies.configuration_vlanext import VLANeXtConfig

TEMPORAL_PATCH = 2  # a still image stands twice in a patch
MERGE = 2  # 2 x 2 patches become one token
VISION_END = "<|vision_end|>"
VISION_START = "<|vision_start|>"


def build_qwen3_vl(config: VLANeXtConfig) -> Any:
    """Qwen3-VL with its vision tower and without its output layer."""
    from transformers import Qwen3VLConfig, Qwen3VLModel

    return Qwen3VLModel(
        Qwen3VLConfig(
            tie_word_embeddings=True,
            text_config={
                "vocab_size": config.vocabulary,
                "hidden_size": config.width,
                "intermediate_size": config.hidden,
                "num_hidden_layers": config.num_layers,
                "num_attention_heads": config.num_heads,
                "num_key_value_heads": config.num_kv_heads,
                "head_dim": config.head_dim,
                "rms_norm_eps": 1e-6,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5e6,
                    "mrope_section": list(config.mrope_section),
                    "mrope_interleaved": True,
                },
            },
            vision_config={
                "depth": config.vision_depth,
                "hidden_size": config.vision_width,
                "intermediate_size": config.vision_hidden,
                "num_heads": config.vision_heads,
                "patch_size": config.patch,
                "spatial_merge_size": MERGE,
                "temporal_patch_size": TEMPORAL_PATCH,
                "out_hidden_size": config.width,
                "num_position_embeddings": config.vision_positions,
                "deepstack_visual_indexes": list(config.deepstack),
            },
            attn_implementation="sdpa",
        )
    )


def patchify(images: Tensor, patch: int) -> Tensor:
    """Images to the vision tower's input.

    Args:
        images: (N, 3, H, W), float in [0, 1]; H and W are multiples of 2 * patch.
        patch: pixels per patch side.

    Returns:
        (N * H / patch * W / patch, 3 * 2 * patch * patch), pixels in [-1, 1]; the four patches of
        one token follow each other.
    """
    rows, columns = (side // (patch * MERGE) for side in images.shape[-2:])
    x = (images - 0.5) / 0.5
    x = x.reshape(len(x), 3, rows, MERGE, patch, columns, MERGE, patch)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)  # (N, rows, columns, 2, 2, 3, patch, patch)
    x = x.unsqueeze(6).expand(*x.shape[:6], TEMPORAL_PATCH, patch, patch)
    return x.reshape(-1, 3 * TEMPORAL_PATCH * patch * patch)


def rope_positions(layout: list[int | tuple[int, int]], mask: Tensor) -> Tensor:
    """Positions in time, row and column (3, B, S).

    Tokens of text count on in all three; those of an image share their time and are laid out in
    rows and columns from there; text goes on behind the larger of the two sides.

    Args:
        layout: the sequence from its start: a number of text tokens, or rows and columns of an
            image. The last entry is text.
        mask: (B, S) bool; padding, which may occur in the last entry alone, does not count.
    """
    device, columns, start, tokens = mask.device, [], 0, 0
    for entry in layout[:-1]:
        if isinstance(entry, tuple):
            grid = torch.cartesian_prod(*(torch.arange(n, device=device) for n in entry)).T
            columns.append(start + torch.cat([torch.zeros_like(grid[:1]), grid]))
            start, tokens = start + max(entry), tokens + entry[0] * entry[1]
        else:
            columns.append(start + torch.arange(entry, device=device).expand(3, -1))
            start, tokens = start + entry, tokens + entry
    head = torch.cat(columns, dim=1)[:, None].expand(-1, len(mask), -1)
    counted = (mask[:, tokens:].cumsum(1) - 1).clamp(min=0)
    return torch.cat([head, (start + counted).expand(3, -1, -1)], dim=2)
