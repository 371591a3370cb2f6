"""The policy under stock lerobot: found, built, normalised, saved, trained."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import pytest
import torch
from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.configs.parser import load_plugin, parse_plugin_args
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_policy, make_pre_post_processors

from policies import VLAAdapterConfig, VLAAdapterPolicy

ROOT = Path(__file__).resolve().parents[2]
IMAGE = {"dtype": "image", "shape": (128, 128, 3), "names": ["height", "width", "channels"]}
FEATURES = {
    "observation.images.image": IMAGE,
    "observation.images.image2": IMAGE,
    "observation.state": {"dtype": "float32", "shape": (8,), "names": [f"s{i}" for i in range(8)]},
    "action": {"dtype": "float32", "shape": (7,), "names": [f"a{i}" for i in range(7)]},
}


@dataclass
class _Job:
    policy: PreTrainedConfig


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """One episode of twelve frames; the state's last number never moves."""
    root = tmp_path_factory.mktemp("data") / "set"
    made = LeRobotDataset.create("test/set", fps=20, features=FEATURES, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    for _ in range(12):
        state = rng.normal(size=8).astype(np.float32)
        state[7] = 0.25
        made.add_frame(
            {
                "observation.images.image": rng.integers(0, 256, (128, 128, 3), dtype=np.uint8),
                "observation.images.image2": rng.integers(0, 256, (128, 128, 3), dtype=np.uint8),
                "observation.state": state,
                "action": rng.uniform(-1, 1, 7).astype(np.float32),
                "task": "open the drawer",
            }
        )
    made.save_episode()
    made.finalize()
    return LeRobotDataset(
        "test/set", root=root, delta_timestamps={"action": [i / 20 for i in range(8)]}
    )


def _batch(dataset: LeRobotDataset, indices: list[int]) -> dict[str, Any]:
    return torch.utils.data.default_collate([dataset[i] for i in indices])


def test_type_is_registered_and_leads_to_the_policy_class() -> None:
    assert "vla_adapter" in PreTrainedConfig.get_known_choices()
    assert get_policy_class("vla_adapter") is VLAAdapterPolicy


def test_factories_build_policy_and_processors_that_train_and_act(
    dataset: LeRobotDataset, tmp_path: Path
) -> None:
    config = VLAAdapterConfig(device="cpu")
    policy = make_policy(config, ds_meta=dataset.meta)
    assert isinstance(policy, VLAAdapterPolicy)
    before, after = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    batch = before(_batch(dataset, [0, 11]))
    loss, log = policy(batch)
    loss.backward()
    assert np.isfinite(log["l1_loss"])
    chunk = after(policy.predict_action_chunk(batch))
    assert chunk.shape == (2, 8, 7)

    policy.save_pretrained(tmp_path)
    before.save_pretrained(tmp_path)
    after.save_pretrained(tmp_path)
    saved = PreTrainedConfig.from_pretrained(tmp_path)
    saved.pretrained_path = tmp_path
    loaded = make_policy(saved, ds_meta=dataset.meta)
    before, after = make_pre_post_processors(saved, pretrained_path=str(tmp_path))
    again = after(loaded.predict_action_chunk(before(_batch(dataset, [0, 11]))))
    assert torch.equal(again, chunk)


def test_state_is_standardised_with_a_floor_and_the_rest_left_alone(
    dataset: LeRobotDataset,
) -> None:
    config = VLAAdapterConfig(device="cpu")
    make_policy(config, ds_meta=dataset.meta)
    before, after = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    raw = _batch(dataset, [3])
    raw["observation.state"][:, 7] += 0.02  # two floors away from its constant value
    done = before(dict(raw))
    stats = dataset.meta.stats["observation.state"]
    mean, std = (torch.as_tensor(stats[name], dtype=torch.float32) for name in ("mean", "std"))
    assert std[7] < 1e-6
    expected = (raw["observation.state"] - mean) / std.clamp(min=0.01)
    torch.testing.assert_close(done["observation.state"], expected, rtol=1e-4, atol=1e-4)
    assert done["observation.state"][0, 7].item() == pytest.approx(2.0, rel=1e-3)
    assert torch.equal(done["action"], raw["action"])
    assert torch.equal(done["observation.images.image"], raw["observation.images.image"])
    assert torch.equal(after(done["action"][:, 0]), raw["action"][:, 0])
    assert std[7] < 1e-6, "the dataset's own statistics must not change"


def test_cached_features_pass_through_the_processors(
    make_config: Callable[..., VLAAdapterConfig], batch: dict[str, Any]
) -> None:
    stats = {"observation.state": {"mean": torch.zeros(8), "std": torch.ones(8)}}
    before, _ = make_pre_post_processors(make_config(), dataset_stats=stats)
    done = before(dict(batch))
    assert torch.equal(done["observation.features"], batch["observation.features"])
    assert done["task"] == batch["task"]
    assert torch.equal(done["action_is_pad"], batch["action_is_pad"])


def test_configuration_reads_from_the_command_line() -> None:
    given = ["--policy.discover_packages_path=policies"]
    for package in parse_plugin_args("discover_packages_path", given).values():
        load_plugin(package)
    arguments = ["--policy.type=vla_adapter", "--policy.device=cpu", "--policy.chunk_size=12"]
    job = draccus.parse(_Job, args=[*arguments, "--policy.view_pooling=[2,2]"])
    config = job.policy
    assert isinstance(config, VLAAdapterConfig)
    assert config.chunk_size == 12
    assert config.view_pooling == [2, 2]
    assert config.normalization_mapping["ACTION"] is NormalizationMode.IDENTITY


@pytest.mark.slow
def test_stock_training_command_trains_it_and_another_process_loads_it(
    dataset: LeRobotDataset, tmp_path: Path
) -> None:
    """``lerobot-train`` in a process that has imported nothing of ours."""
    out = tmp_path / "out"
    arguments = [
        "--policy.discover_packages_path=policies",
        "--policy.type=vla_adapter",
        "--policy.device=cpu",
        "--dataset.repo_id=test/set",
        f"--dataset.root={dataset.root}",
        f"--output_dir={out}",
        "--steps=2",
        "--batch_size=2",
        "--num_workers=0",
        "--save_freq=2",
        "--log_freq=1",
        "--wandb.enable=false",
    ]
    train = [sys.executable, "-m", "lerobot.scripts.lerobot_train", *arguments]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        train, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    policy = VLAAdapterPolicy.from_pretrained(out / "checkpoints/000002/pretrained_model")
    assert policy.config.fingerprints == policy.fingerprints
