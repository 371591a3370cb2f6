"""A policy of the default shape, and batches that look like LIBERO's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature

from policies import VLAAdapterConfig, VLAAdapterPolicy

SOUP = "pick up the alphabet soup and place it in the basket"
SAUCE = "pick up the bbq sauce and place it in the basket"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def make_config() -> Callable[..., VLAAdapterConfig]:
    def make(**changes: Any) -> VLAAdapterConfig:
        image = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 128, 128))
        return VLAAdapterConfig(
            device="cpu",
            input_features={
                "observation.images.image": image,
                "observation.images.image2": image,
                "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(8,)),
            },
            output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(7,))},
            **changes,
        )

    return make


@pytest.fixture
def policy(make_config: Callable[..., VLAAdapterConfig]) -> VLAAdapterPolicy:
    return VLAAdapterPolicy(make_config())


@pytest.fixture
def batch() -> dict[str, Any]:
    """Four samples with cached features."""
    rng = torch.Generator().manual_seed(1)
    return {
        "observation.features": torch.randn(4, 2, 64, 112, generator=rng).half(),
        "observation.state": torch.randn(4, 8, generator=rng),
        "task": [SOUP, SAUCE, "open the drawer", SOUP],
        "action": torch.rand(4, 8, 7, generator=rng) * 2 - 1,
        "action_is_pad": torch.zeros(4, 8, dtype=torch.bool),
    }


@pytest.fixture
def images() -> dict[str, torch.Tensor]:
    """Two samples of both views."""
    rng = torch.Generator().manual_seed(2)
    keys = ("observation.images.image", "observation.images.image2")
    return {key: torch.rand(2, 3, 128, 128, generator=rng) for key in keys}
