"""The memory of a forward and a backward pass is foretold from shapes, and is what is measured."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent / "plugin"))

from vla_opt._activations import _batch, working_bytes
from vla_opt._dry_run import meta_policy
from vla_opt._policy import PolicyError
from vla_opt.config import DataConfig, TrainConfig

# Kernels' own buffers are not foretold; everything else is.
TOLERANCE = 0.05
IMAGE = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 32, 32))
FEATURES = {
    "observation.images.image": IMAGE,
    "observation.images.image2": IMAGE,
    "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(8,)),
    "action": PolicyFeature(type=FeatureType.ACTION, shape=(7,)),
}


def config(policy: Any, tmp_path: Path, **changes: Any) -> TrainConfig:
    given = {"batch_size": 8, "output_dir": tmp_path, "data": DataConfig(root=tmp_path), **changes}
    return TrainConfig(policy=policy, **given)


def embedded(**changes: Any) -> Any:
    from policies import VLAAdapterConfig

    return VLAAdapterConfig(device="cpu", image_size=32, width=64, backbone="compact", **changes)


def measured(policy: nn.Module, batch: dict[str, Any]) -> int:
    """Bytes that torch's allocator gave out during a forward and a backward pass, at their most."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        loss, _ = policy(batch)
        loss.backward()
    assert record.profiler is not None
    events = sorted(record.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    now = peak = 0
    for event in events:
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def real_batch(policy: nn.Module, run: TrainConfig) -> dict[str, Any]:
    made = _batch(policy, run)
    for key, value in made.items():
        if isinstance(value, Tensor):
            number = value.dtype.is_floating_point
            made[key] = torch.rand(value.shape).to(value.dtype) if number else \
                torch.zeros(value.shape, dtype=value.dtype)  # fmt: skip
    return made


def bytes_of(batch: dict[str, Any]) -> int:
    return sum(v.nbytes for v in batch.values() if isinstance(v, Tensor))


def both(policy_config: Any, tmp_path: Path, **changes: Any) -> tuple[int, int]:
    """Foretold and measured bytes."""
    from lerobot.policies.factory import get_policy_class

    run = config(policy_config, tmp_path, **changes)
    foretold = working_bytes(meta_policy(run.policy, FEATURES), run)
    filled = copy.deepcopy(run.policy)
    filled.input_features = {k: f for k, f in FEATURES.items() if k != "action"}
    filled.output_features = {"action": FEATURES["action"]}
    policy = get_policy_class(filled.type)(filled).train()
    batch = real_batch(policy, run)
    getattr(policy, "prepare", lambda *_: None)(batch["task"][:1])
    return foretold, measured(policy, batch) + bytes_of(batch)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [4, 16])
def test_foretold_is_what_the_allocator_gives_out(tmp_path: Path, size: int) -> None:
    foretold, found = both(embedded(), tmp_path, batch_size=size)
    print(f"foretold {foretold / 2**20:.2f} MiB, measured {found / 2**20:.2f} MiB")
    assert foretold == pytest.approx(found, rel=TOLERANCE)


def test_lerobots_act_is_foretold_too(tmp_path: Path) -> None:
    from lerobot.policies.act.configuration_act import ACTConfig

    small = ACTConfig(
        device="cpu", chunk_size=4, n_action_steps=4, dim_model=32, n_heads=2, dim_feedforward=64,
        n_encoder_layers=1, n_vae_encoder_layers=1, pretrained_backbone_weights=None,
    )  # fmt: skip
    foretold, found = both(small, tmp_path, batch_size=4)
    print(f"foretold {foretold / 2**20:.2f} MiB, measured {found / 2**20:.2f} MiB")
    assert foretold == pytest.approx(found, rel=TOLERANCE)


def test_a_batch_twice_as_large_holds_twice_as_much_but_for_the_gradients(tmp_path: Path) -> None:
    found = {}
    for size in (16, 32, 64):
        run = config(embedded(), tmp_path, batch_size=size)
        found[size] = working_bytes(meta_policy(run.policy, FEATURES), run)
    assert found[64] - found[32] == pytest.approx(2 * (found[32] - found[16]), rel=0.01)


def test_checkpointed_layers_hold_less(tmp_path: Path) -> None:
    from policies.pi05 import VLAPi05Config

    def bytes_with(**changes: Any) -> int:
        policy = VLAPi05Config(
            device="cpu", size="embedded", tokenizer="minilm_l6_v2", image_resolution=(32, 32),
            chunk_size=8, n_action_steps=4, tokenizer_max_length=200, **changes,
        )  # fmt: skip
        run = config(policy, tmp_path, batch_size=32)
        return working_bytes(meta_policy(run.policy, FEATURES), run)

    assert bytes_with(gradient_checkpointing=True) < 0.7 * bytes_with()


def test_half_precision_holds_less(tmp_path: Path) -> None:
    def bytes_with(precision: str) -> int:
        run = config(embedded(), tmp_path, batch_size=64, mixed_precision=precision)
        return working_bytes(meta_policy(run.policy, FEATURES), run)

    assert bytes_with("bf16") < 0.85 * bytes_with("no")


def test_a_policy_that_needs_numbers_says_so(tmp_path: Path) -> None:
    class Picky(nn.Linear):
        def forward(self, batch: dict[str, Any]) -> tuple[Tensor, None]:
            state = batch["observation.state"]
            return super().forward(state[state[:, 0] > 0.5]).sum(), None

    run = config(embedded(), tmp_path)
    with torch.device("meta"):
        picky = Picky(8, 1)
    picky.config = meta_policy(run.policy, FEATURES).config
    with pytest.raises(PolicyError, match="'vla_adapter' cannot run on shapes alone"):
        working_bytes(picky, run)
