"""A vision transformer up to its second-to-last block, with timm's names for the weights.

Only what the policies read is built: patches, blocks, and no final norm, pooling or last block. So
no parameter goes without a gradient, and published weights fit by name.

Source: Dosovitskiy et al., arXiv 2010.11929; registers and layer scale as in DINOv2 (arXiv
2304.07193, 2309.16588); sizes of DINOv2-L and SigLIP-so400m (arXiv 2303.15343).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from policies._attention import merge_heads, split_heads


@dataclass(frozen=True, kw_only=True)
class ViTSize:
    """Sizes and input statistics of a vision transformer.

    Args:
        width: channels. depth: blocks of the published network; one less is built.
        num_heads: attention heads. hidden: feed-forward channels. patch: pixels per patch side.
        num_prefix: a class token and registers in front of the patches; 0 = none.
        layer_scale: whether blocks scale their output per channel.
        mean: of the pixels in [0, 1], per colour. std: the same.
    """

    width: int
    depth: int
    num_heads: int
    hidden: int
    patch: int = 14
    num_prefix: int = 0
    layer_scale: bool = False
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


DINOV2_LARGE = ViTSize(
    width=1024,
    depth=24,
    num_heads=16,
    hidden=4096,
    num_prefix=5,
    layer_scale=True,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
SIGLIP_SO400M = ViTSize(width=1152, depth=27, num_heads=16, hidden=4304)

_NORM_EPS = 1e-6
_LAYER_SCALE = 1e-5  # DINOv2's initial value


class _PatchEmbed(nn.Module):
    def __init__(self, size: ViTSize) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, size.width, size.patch, stride=size.patch)

    def forward(self, images: Tensor) -> Tensor:
        patches: Tensor = self.proj(images)
        return patches.flatten(2).transpose(1, 2)


class _Attention(nn.Module):
    def __init__(self, size: ViTSize) -> None:
        super().__init__()
        self.num_heads = size.num_heads
        self.qkv = nn.Linear(size.width, 3 * size.width)
        self.proj = nn.Linear(size.width, size.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(p, self.num_heads) for p in self.qkv(x).chunk(3, dim=-1))
        out: Tensor = self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        return out


class _MLP(nn.Module):
    def __init__(self, size: ViTSize) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size.width, size.hidden)
        self.fc2 = nn.Linear(size.hidden, size.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), _LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, size: ViTSize) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size.width, eps=_NORM_EPS)
        self.attn = _Attention(size)
        self.ls1 = _LayerScale(size.width) if size.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(size.width, eps=_NORM_EPS)
        self.mlp = _MLP(size)
        self.ls2 = _LayerScale(size.width) if size.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class VisionTransformer(nn.Module):
    """Square images to the patch features of the second-to-last block.

    Args:
        size: sizes. image_size: side in pixels, a multiple of the patch size.

    Raises:
        ValueError: an image size that does not divide into patches.
    """

    def __init__(self, size: ViTSize, image_size: int) -> None:
        super().__init__()
        if image_size % size.patch:
            raise ValueError(f"image_size is {image_size}, expected a multiple of {size.patch}")
        self.size, self.gradient_checkpointing = size, False
        side = image_size // size.patch
        self.grid = (side, side)
        self.patch_embed = _PatchEmbed(size)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, side * side, size.width))
        if size.num_prefix:
            self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, size.width))
        if size.num_prefix > 1:
            registers = 0.02 * torch.randn(1, size.num_prefix - 1, size.width)
            self.reg_token = nn.Parameter(registers)
        self.blocks = nn.ModuleList(_Block(size) for _ in range(size.depth - 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, side, side), float in [0, 1], to (N, patches, width)."""
        mean, std = images.new_tensor(self.size.mean), images.new_tensor(self.size.std)
        images = (images - mean[:, None, None]) / std[:, None, None]
        x = self.patch_embed(images.to(self.pos_embed.dtype)) + self.pos_embed
        prefix = [getattr(self, n) for n in ("cls_token", "reg_token") if hasattr(self, n)]
        x = torch.cat([*(p.expand(len(x), -1, -1) for p in prefix), x], dim=1)
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x[:, self.size.num_prefix :]


class FusedVisionBackbone(nn.Module):
    """Two vision transformers side by side, channels joined: the `Backbone` of Prismatic models.

    Args:
        first: sizes of one. second: of the other. image_size: side of the input in pixels.
    """

    frozen = False
    fingerprint = "dinosiglip/v1"

    def __init__(self, first: ViTSize, second: ViTSize, image_size: int) -> None:
        super().__init__()
        self.featurizer = VisionTransformer(first, image_size)
        self.fused_featurizer = VisionTransformer(second, image_size)
        self.grid = self.featurizer.grid
        self.channels = first.width + second.width

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, V, 3, side, side), float in [0, 1], to (B, V, T, C), float32."""
        flat = images.flatten(0, 1)
        joined = torch.cat([self.featurizer(flat), self.fused_featurizer(flat)], dim=-1)
        return joined.unflatten(0, images.shape[:2]).float()

    def forward(self, images: Tensor) -> Tensor:
        """See `encode`."""
        return self.encode(images)
