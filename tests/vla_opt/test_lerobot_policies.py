"""Policies that come with lerobot train here as they are, checkpoint, and go on."""

import sys
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

from tiny_runs import rows  # noqa: E402

from vla_opt.config import DataConfig, TrainConfig  # noqa: E402
from vla_opt.optim.config import OptimizerConfig  # noqa: E402
from vla_opt.train import train  # noqa: E402

ACT: dict[str, Any] = {
    "pretrained_backbone_weights": None,
    "chunk_size": 4,
    "n_action_steps": 4,
    "dim_model": 32,
    "n_heads": 2,
    "dim_feedforward": 64,
    "n_encoder_layers": 1,
    "n_vae_encoder_layers": 1,
    "latent_dim": 8,
}
DIFFUSION: dict[str, Any] = {
    "pretrained_backbone_weights": None,
    "use_group_norm": True,
    "crop_ratio": 1.0,
    "down_dims": (32, 64),
    "n_groups": 4,
    "horizon": 8,
    "diffusion_step_embed_dim": 16,
    "spatial_softmax_num_keypoints": 4,
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options"), [("act", ACT), ("diffusion", DIFFUSION)])
def test_policy_of_lerobot_trains_with_pion_and_goes_on(
    dataset: Path, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    import lerobot.policies  # noqa: F401 - registers them
    from lerobot.configs import PreTrainedConfig

    if kind == "diffusion":
        pytest.importorskip("diffusers")

    def run(steps: int) -> TrainConfig:
        return TrainConfig(
            policy=PreTrainedConfig.get_choice_class(kind)(device="cpu", **options),
            data=DataConfig(root=dataset),
            optimizer=OptimizerConfig(name="pion", preset="default", lr=1e-4),
            output_dir=tmp_path,
            steps=steps,
            batch_size=4,
            log_every=1,
            num_threads=1,
            tensorboard=False,
        )

    train(run(2))
    summary = train(run(3))
    assert summary.steps_now == 1
    assert [row["step"] for row in rows(tmp_path, "train")] == [1, 2, 3]
    assert len({row["loss"] for row in rows(tmp_path, "train")}) == 3
