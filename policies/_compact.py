"""A small convolutional encoder trained from scratch with the policy: no pretrained file needed."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

STRIDE = 16
CHANNELS = 96


class CompactBackbone(nn.Module):
    """Four stride-2 convolutions with group norm: (B, V, 3, H, W) to (B, V, H/16 * W/16, 96).

    One set of weights for all views: what a corner or a colour is does not depend on the camera.

    Args:
        image_size: side of the square input in pixels; a multiple of 16.

    Raises:
        ValueError: ``image_size`` is not a multiple of 16.
    """

    frozen = False
    fingerprint = "compact/v1"
    channels = CHANNELS

    def __init__(self, image_size: int) -> None:
        super().__init__()
        if image_size <= 0 or image_size % STRIDE:
            raise ValueError(f"image_size is {image_size}; compact needs a multiple of {STRIDE}")
        self.grid = (image_size // STRIDE, image_size // STRIDE)
        widths = (3, 24, 48, 96, CHANNELS)
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            kernel = 5 if i == 0 else 3
            layers += [
                nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2),
                nn.GroupNorm(8, outputs),
                nn.GELU(),
            ]
        self.layers = nn.Sequential(*layers)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, V, 3, H, W), float in [0, 1], to (B, V, T, 96); differentiable."""
        return self(images)

    def forward(self, images: Tensor) -> Tensor:
        centred = images.flatten(0, 1).float() * 2 - 1
        maps: Tensor = self.layers(centred)
        return maps.flatten(2).transpose(1, 2).unflatten(0, images.shape[:2])
