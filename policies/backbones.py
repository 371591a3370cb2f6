"""Image encoders: what the policy asks of one, and the table of those it knows.

A backbone turns images into a grid of feature vectors per view. A frozen one lives outside the
policy's parameters and checkpoint (its weights come from a pinned file), so its features can be
computed once and cached. A trainable one is an ``nn.Module`` and becomes part of the policy.

Larger encoders (DINOv2 + SigLIP in front of Qwen2.5, say) enter by the same door::

    @BACKBONES.register("dinov2_siglip")
    def dinov2_siglip(image_size: int) -> Backbone: ...

and are checked with `check_backbone`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from policies._registry import Registry


@runtime_checkable
class Backbone(Protocol):
    """An image encoder.

    Attributes:
        frozen: True when it is not trained; then it holds no parameters of the policy, and its
            features may be cached.
        fingerprint: identifies weights and preprocessing; equal fingerprints mean equal features.
        grid: rows and columns of the feature map of one view; T = rows * columns.
        channels: features per position.
    """

    frozen: bool
    fingerprint: str
    grid: tuple[int, int]
    channels: int

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, V, 3, H, W), float in [0, 1], to features (B, V, T, C), float32."""
        ...


BACKBONES: Registry[Callable[[int], Backbone]] = Registry("backbone")


def build_backbone(name: str, image_size: int) -> Backbone:
    """Build the backbone registered as ``name`` for square images of ``image_size`` pixels.

    Raises:
        UnknownNameError: no such backbone; names the nearest.
    """
    return BACKBONES[name](image_size)


@BACKBONES.register("efficientnet_lite0")
def _efficientnet_lite0(image_size: int) -> Backbone:
    from policies._efficientnet_lite import EfficientNetLite0Backbone

    return EfficientNetLite0Backbone(image_size)


@BACKBONES.register("compact")
def _compact(image_size: int) -> Backbone:
    from policies._compact import CompactBackbone

    return CompactBackbone(image_size)


def check_backbone(backbone: Backbone, image_size: int) -> None:
    """Check that ``backbone`` keeps its promises; for authors of new ones.

    Raises:
        ValueError: names the promise that is broken.
    """
    if not isinstance(backbone, Backbone):
        raise ValueError(f"{type(backbone).__name__} lacks an attribute or method of Backbone")
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(2, 2, 3, image_size, image_size, generator=rng)
    with torch.no_grad():
        features, again = backbone.encode(images), backbone.encode(images)
    expected = (2, 2, backbone.grid[0] * backbone.grid[1], backbone.channels)
    if tuple(features.shape) != expected:
        raise ValueError(f"encode returned shape {tuple(features.shape)}, expected {expected}")
    if features.dtype != torch.float32:
        raise ValueError(f"encode returned {features.dtype}, expected torch.float32")
    if not torch.equal(features, again):
        raise ValueError("encode is not deterministic: two calls on the same images differ")
    trainable = isinstance(backbone, torch.nn.Module) and any(
        p.requires_grad for p in backbone.parameters()
    )
    if backbone.frozen == trainable:
        raise ValueError(f"frozen is {backbone.frozen}, but trainable parameters: {trainable}")
