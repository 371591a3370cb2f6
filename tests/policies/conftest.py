"""A policy of the default shape, and batches that look like LIBERO's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


@pytest.fixture
def same_when_cut() -> Iterator[Callable[[Callable[[], Any], dict[str, Any]], None]]:
    """Checks that a policy under FSDP2 has the loss and the gradients that it has as a whole.

    One process is enough to meet weights that are read while they are not gathered.
    """
    from torch import distributed

    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield _check_cut
    distributed.destroy_process_group()


def _check_cut(build: Callable[[], Any], batch: dict[str, Any]) -> None:
    from vla_opt._sharding import is_sharded, shard, whole

    losses, grads = [], []
    for cut in (False, True):
        torch.manual_seed(0)
        policy = build().train()
        if cut:
            shard(policy, torch.device("cpu"))
            assert is_sharded(policy)
        torch.manual_seed(1)
        loss = policy(batch)[0]
        loss.backward()
        losses.append(loss.detach())
        grads.append({n: p.grad for n, p in policy.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[1], losses[0])
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(whole(grads[1][name]), grad, msg=name)
