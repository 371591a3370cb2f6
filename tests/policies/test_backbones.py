"""Image encoders."""

from __future__ import annotations

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet

from policies import BACKBONES, UnknownNameError, build_backbone, check_backbone
from policies._efficientnet_lite import MEAN, STD, WEIGHTS


@pytest.mark.parametrize("name", list(BACKBONES))
def test_every_backbone_keeps_its_promises(name: str) -> None:
    check_backbone(build_backbone(name, 64), 64)


def test_folded_trunk_equals_the_training_time_network() -> None:
    images = torch.rand(2, 2, 3, 128, 128)
    reference = EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(torch.load(WEIGHTS.locate(), weights_only=True))
    x = images.flatten(0, 1)
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        x = reference._swish(reference._bn0(reference._conv_stem(x)))
        for block in reference._blocks[:11]:
            x = block(x)
    expected = x.flatten(2).transpose(1, 2).unflatten(0, (2, 2))
    found = build_backbone("efficientnet_lite0", 128).encode(images)
    assert found.shape == (2, 2, 64, 112)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)


def test_an_image_has_the_same_features_in_any_batch() -> None:
    backbone = build_backbone("efficientnet_lite0", 64)
    images = torch.rand(11, 1, 3, 64, 64)
    alone = torch.cat([backbone.encode(image[None]) for image in images])
    torch.testing.assert_close(backbone.encode(images), alone, rtol=1e-4, atol=1e-4)


def test_compact_backbone_is_trained() -> None:
    backbone = build_backbone("compact", 64)
    assert isinstance(backbone, torch.nn.Module)
    backbone.encode(torch.rand(1, 2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in backbone.parameters())


def test_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'efficientnet_lite0'"):
        build_backbone("efficientnet_light0", 128)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_image_size_that_does_not_fit_the_stride_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="image_size is 100"):
        build_backbone(name, 100)


class _Broken:
    frozen = True
    fingerprint = "broken"
    grid = (2, 2)
    channels = 3

    def __init__(self, tokens: int, noise: float) -> None:
        self.tokens, self.noise = tokens, noise

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        shape = (*images.shape[:2], self.tokens, 3)
        return torch.zeros(shape) + self.noise * torch.rand(shape)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (_Broken(5, 0.0), "expected \\(2, 2, 4, 3\\)"),
        (_Broken(4, 1.0), "not deterministic"),
        (object(), "lacks"),
    ],
)
def test_checker_names_the_broken_promise(broken: object, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_backbone(broken, 32)  # type: ignore[arg-type]
