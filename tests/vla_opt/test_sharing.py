"""What others get: a card that claims what was measured, merged weights that answer the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from vla_opt.cli.main import main
from vla_opt.evaluation.contract import open_checkpoint
from vla_opt.evaluation.records import EpisodeRecord
from vla_opt.io import append_jsonl
from vla_opt.sharing import (
    MergeError,
    ShareError,
    export,
    fetch,
    from_pretrained,
    merge_checkpoint,
    model_card,
    push_to_hub,
    run_of,
    write_card,
)
from vla_opt.sharing.merge import merged_tensors

SIZE = 32
SUITE = "libero_object"


# -- a checkpoint of lerobot's smallest policy -----------------------------------------------------


def act_policy() -> Any:
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    image = PolicyFeature(type=FeatureType.VISUAL, shape=(3, SIZE, SIZE))
    torch.manual_seed(0)
    config = ACTConfig(
        device="cpu",
        pretrained_backbone_weights=None,
        push_to_hub=False,
        chunk_size=4,
        n_action_steps=4,
        dim_model=16,
        n_heads=2,
        dim_feedforward=16,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        input_features={
            "observation.images.image": image,
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(8,)),
        },
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(7,))},
    )
    return ACTPolicy(config).eval()


def save(policy: Any, folder: Path) -> None:
    from lerobot.policies.factory import make_pre_post_processors

    stats = {
        name: {"mean": torch.zeros(size), "std": torch.ones(size)}
        for name, size in (("observation.state", 8), ("action", 7))
    }
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(policy.config, dataset_stats=stats):
        processor.save_pretrained(folder)


def look() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {
        "observation.images.image": torch.rand(1, 3, SIZE, SIZE, generator=rng),
        "observation.state": torch.randn(1, 8, generator=rng),
    }


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as `vla-opt train` and `eval` leave it; copy before changing."""
    run = tmp_path_factory.mktemp("runs") / "soup"
    folder = run / "train/checkpoints/000010/pretrained_model"
    save(act_policy(), folder)
    train = {
        "policy": {"type": "act", "chunk_size": 4},
        "optimizer": {"name": "pion", "lr": 0.02, "groups": [{"match": "head"}]},
        "steps": 10,
        "batch_size": 8,
        "seed": 3,
    }
    (run / "train/config.yaml").write_text(yaml.safe_dump(train))
    made = {"versions": {"torch": "2.11.0", "ray": None}, "episodes": 20, "frames": 1700}
    (run / "train/metadata.json").write_text(json.dumps({**made, "git_commit": "abc123"}))
    (run / "eval").mkdir()
    metadata = {"identity": {"execute_steps": 2}, "episodes_planned": 10, "policy": "act"}
    (run / "eval/metadata.json").write_text(json.dumps(metadata))
    own = open_checkpoint(folder).sha256
    for number in range(10):
        append_jsonl(run / "eval/episodes.jsonl", asdict(record(number, number < 9, own)))
    return run


def record(init_state: int, success: bool, checkpoint: str) -> EpisodeRecord:
    return EpisodeRecord(
        suite=SUITE,
        task_id=0,
        init_state=init_state,
        trial=0,
        seed=init_state,
        outcome="success" if success else "failure",
        success=success,
        steps=80,
        wall_s=1.0,
        cpu_s=1.0,
        worker=0,
        retries=0,
        error=None,
        video=None,
        language="pick up the soup",
        config_hash="c",
        checkpoint_hash=checkpoint,
        render_profile="fast",
        timestamp="2026-01-01T00:00:00Z",
    )


@pytest.fixture
def run(master: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(master, tmp_path / "soup"))


# -- the card --------------------------------------------------------------------------------------


def test_the_card_states_rate_interval_protocol_recipe_and_versions(run: Path) -> None:
    text = model_card(open_checkpoint(run), licence="apache-2.0")
    assert "Success: 9/10 (90.0 %, 95 % CI 59.6-98.2)" in text
    assert "2 of 4 predicted executed before the policy looks again" in text
    for fact in ("| optimizer, name | pion |", "| steps | 10 |", "| version of torch | 2.11.0 |"):
        assert fact in text
    assert "| episodes | 20 |" in text
    assert "version of ray" not in text
    said = yaml.safe_load(text.split("---\n")[1])
    assert said["library_name"] == "lerobot"
    assert said["license"] == "apache-2.0"
    (result,) = said["model-index"][0]["results"]
    assert result["dataset"]["name"] == SUITE
    assert result["metrics"][0]["value"] == 0.9


def test_the_card_of_a_robot_policy_shows_how_to_check_it_on_a_robot(run: Path) -> None:
    folder = open_checkpoint(run).folder
    simulated = model_card(open_checkpoint(run))
    assert f"vla-opt eval --checkpoint=FOLDER --suites={SUITE}" in simulated
    said = {"action_space": "joint_velocity", "controller_profile": "droid"}
    (folder / "deploy_spec.json").write_text(json.dumps(said))
    text = model_card(open_checkpoint(folder))
    assert "vla-opt check FOLDER --robot=droid" in text
    assert "| actions of the robot, controller_profile | droid |" in text
    assert "lerobot-eval" not in text


def test_episodes_of_another_checkpoint_are_not_claimed(run: Path) -> None:
    for number in range(10, 15):
        append_jsonl(run / "eval/episodes.jsonl", asdict(record(number, True, "another")))
    text = model_card(open_checkpoint(run))
    assert "Success: 9/10" in text
    assert "5 episodes of the run were played by another checkpoint" in text


def test_a_checkpoint_without_a_record_claims_nothing(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(open_checkpoint(run).folder, alone)
    text = model_card(open_checkpoint(alone))
    assert "Not measured." in text
    assert "model-index" not in text
    assert run_of(alone) is None
    assert "Success: 9/10" in model_card(open_checkpoint(alone), run=run)


def test_writing_the_card_leaves_the_checkpoint_what_it_was(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = open_checkpoint(run).sha256
    assert main(["card", str(run)]) == 0
    assert open_checkpoint(run).sha256 == before
    assert "soup" in (open_checkpoint(run).folder / "README.md").read_text()
    capsys.readouterr()
    assert main(["card", str(run), "--show=true", "--name=other"]) == 0
    assert "# other\n" in capsys.readouterr().out


# -- adapters --------------------------------------------------------------------------------------


def adapted_model() -> nn.Module:
    """PEFT's own adapters inside a model, as policies with `lora_rank` have them."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3, bias=False), nn.Linear(3, 2))
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["0", "2"], bias="none")
    inject_adapter_in_model(config, model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model.eval()


def test_merged_weights_answer_as_peft_does() -> None:
    model = adapted_model()
    plain = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3, bias=False), nn.Linear(3, 2))
    plain.load_state_dict(merged_tensors(model.state_dict(), 8 / 2))  # every name fits
    x = torch.randn(7, 5)
    torch.testing.assert_close(plain(x), model(x))


def test_half_an_adapter_is_refused() -> None:
    tensors = dict(adapted_model().state_dict())
    missing = {k: v for k, v in tensors.items() if k != "0.lora_B.default.weight"}
    with pytest.raises(MergeError, match=r"0\.lora_B\.default\.weight.* is missing"):
        merged_tensors(missing, 1.0)
    orphan = {**tensors, "9.lora_A.default.weight": torch.zeros(1)}
    with pytest.raises(MergeError, match="without a base layer"):
        merged_tensors(orphan, 1.0)
    wrong = {**tensors, "2.lora_A.default.weight": torch.zeros(2, 4)}
    with pytest.raises(MergeError, match="does not fit the weight"):
        merged_tensors(wrong, 1.0)


def test_a_checkpoint_with_lora_rank_is_merged_in_the_file(run: Path, tmp_path: Path) -> None:
    folder = open_checkpoint(run).folder
    tensors = adapted_model().state_dict()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "lora_rank": 2, "lora_alpha": 8}))
    shutil.rmtree(folder.parent / "training_state", ignore_errors=True)
    assert main(["merge", str(folder), f"--out={tmp_path / 'merged'}"]) == 0
    expected = merged_tensors(tensors, 4.0)
    found = load_file(tmp_path / "merged/model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert json.loads((tmp_path / "merged/config.json").read_text())["lora_rank"] == 0
    assert (tmp_path / "merged/policy_preprocessor.json").is_file()


def test_a_peft_adapter_of_lerobot_is_merged_into_its_base(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = tmp_path / "base"
    policy = act_policy()
    save(policy, base)
    policy.config.pretrained_path = str(base)
    wrapped = get_peft_model(policy, LoraConfig(r=2, lora_alpha=4, target_modules=r".*linear[12]"))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    expected = wrapped.eval().predict_action_chunk(look())
    adapter = tmp_path / "adapter"
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(adapter)
    policy.config.use_peft = True
    policy.config.save_pretrained(adapter)
    out = merge_checkpoint(adapter, tmp_path / "merged")
    again = type(act_policy()).from_pretrained(out)
    torch.testing.assert_close(again.predict_action_chunk(look()), expected)
    plain = type(act_policy()).from_pretrained(base).predict_action_chunk(look())
    assert not torch.allclose(plain, expected, atol=1e-3)
    assert json.loads((out / "config.json").read_text())["use_peft"] is False
    shutil.rmtree(base)
    with pytest.raises(MergeError, match="--base=DIR"):
        merge_checkpoint(adapter, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_nothing_to_merge_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=r"has no adapter.*used as it is"):
        merge_checkpoint(open_checkpoint(run).folder, tmp_path / "out")


# -- publishing ------------------------------------------------------------------------------------


class RecordingHub:
    """Stands where `huggingface_hub.HfApi` would: keeps what it is asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.error = error

    def create_repo(self, repo_id: str, **options: Any) -> None:
        if self.error is not None:
            raise self.error
        self.asked.append((repo_id, options))

    def upload_folder(self, *, repo_id: str, **options: Any) -> str:
        self.asked.append((repo_id, options))
        return f"https://hub/{repo_id}/commit/1"


def test_the_hub_is_asked_as_its_own_client_takes_it() -> None:
    """The names of the arguments are those of `HfApi`; no network is needed to see that."""
    import inspect

    from huggingface_hub import HfApi

    create = inspect.signature(HfApi.create_repo).parameters
    upload = inspect.signature(HfApi.upload_folder).parameters
    assert {"repo_id", "private", "exist_ok"} <= create.keys()
    assert {"repo_id", "folder_path", "commit_message", "revision"} <= upload.keys()


def test_a_checkpoint_is_published_with_its_card_and_privately(run: Path) -> None:
    checkpoint, hub = open_checkpoint(run), RecordingHub()
    with pytest.raises(ShareError, match="vla-opt card"):
        push_to_hub(checkpoint, "me/soup", hub=hub)
    assert hub.asked == []
    write_card(checkpoint)
    assert push_to_hub(checkpoint, "me/soup", hub=hub) == "https://hub/me/soup/commit/1"
    (_, created), (_, uploaded) = hub.asked
    assert created == {"private": True, "exist_ok": True}
    assert Path(uploaded["folder_path"]) == checkpoint.folder
    with pytest.raises(ShareError, match="expected user/name"):
        push_to_hub(checkpoint, "soup", hub=hub)
    with pytest.raises(ShareError, match="hf auth login"):
        push_to_hub(checkpoint, "me/soup", hub=RecordingHub(OSError("offline")))


def test_what_is_exported_is_loaded_and_answers_the_same(run: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(run)
    write_card(checkpoint)
    folder = export(checkpoint, tmp_path / "published")
    assert open_checkpoint(fetch(str(folder))).sha256 == checkpoint.sha256
    mine, theirs = from_pretrained(str(run)), from_pretrained(str(folder))
    seen = {
        "pixels": {"image": (look()["observation.images.image"][0] * 255).byte().numpy()},
        "agent_pos": look()["observation.state"][0].numpy(),
        "task": "pick up the soup",
        "seed": 1,
    }
    seen["pixels"]["image"] = seen["pixels"]["image"].transpose(1, 2, 0)
    (first,), (second,) = mine.infer([seen]), theirs.infer([seen])
    assert (first == second).all()
    with pytest.raises(FileExistsError):
        export(checkpoint, folder)


def test_a_name_that_is_nowhere_is_said_to_be_so() -> None:
    with pytest.raises(ShareError, match="neither a folder here nor in the hub's cache"):
        fetch("nobody/nothing-of-this-name")


# -- stock lerobot ---------------------------------------------------------------------------------


def offline_home(home: Path) -> dict[str, str]:
    """A home folder in which hf-libero finds its assets and asks no question."""
    from envs._libero_setup import assets_root, libero_root

    (home / ".cache/libero").mkdir(parents=True)
    (home / ".cache/libero/assets").symlink_to(assets_root())
    root = libero_root()
    entries = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": home / "datasets",
        "assets": assets_root(),
    }
    (home / ".libero").mkdir()
    text = "".join(f"{key}: {path}\n" for key, path in entries.items())
    (home / ".libero/config.yaml").write_text(text)
    return {"HOME": str(home), "LIBERO_CONFIG_PATH": str(home / ".libero")}


def trained(dataset: Path, tmp_path: Path, **policy: Any) -> Path:
    """A checkpoint of our trainer, after one step of a tiny policy."""
    from policies import VLAAdapterConfig
    from vla_opt.config import DataConfig, TrainConfig
    from vla_opt.train import train

    sizes = {"num_queries": 2, "width": 32, "num_layers": 1, "num_heads": 2}
    config = TrainConfig(
        policy=VLAAdapterConfig(backbone="compact", image_size=32, device="cpu", **sizes, **policy),
        data=DataConfig(root=dataset, cache_dir=tmp_path / "cache"),
        output_dir=tmp_path / "run/train",
        steps=1,
        batch_size=2,
        num_threads=1,
        tensorboard=False,
        spectra_every=0,
    )
    return train(config).checkpoint / "pretrained_model"


def run_stock(command: str, *words: str, folder: Path, **environment: str) -> str:
    """A command of lerobot, in a process that has imported nothing of ours; what it said."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name(command)), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=folder, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.sim
def test_stock_lerobot_eval_runs_an_episode_of_a_checkpoint_of_our_trainer(
    dataset: Path, tmp_path: Path
) -> None:
    folder = trained(dataset, tmp_path)
    run_stock(
        "lerobot-eval",
        f"--policy.path={folder}",
        "--env.discover_packages_path=policies",
        "--policy.device=cpu",
        "--env.type=libero",
        f"--env.task={SUITE}",
        "--env.task_ids=[0]",
        "--env.episode_length=8",
        "--env.observation_height=32",
        "--env.observation_width=32",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        f"--output_dir={tmp_path / 'out'}",
        folder=tmp_path,
        **offline_home(tmp_path / "home"),
    )
    told = json.loads((tmp_path / "out/eval_info.json").read_text())
    (task,) = told["per_task"]
    assert (task["task_group"], len(task["metrics"]["successes"])) == (SUITE, 1)


@pytest.mark.slow
def test_stock_lerobot_rollout_moves_the_simulated_arm_with_a_checkpoint_of_our_trainer(
    tmp_path: Path,
) -> None:
    from deploy.lerobot_robot_fr3.fr3 import NAMES
    from deploy.limits import RESET_POSE
    from deploy.sim.scene import CAMERAS
    from vla_opt.data import Episode, write_dataset

    rest = np.tile(np.array([*RESET_POSE, 0.0], np.float32), (20, 1))
    rest += np.linspace(0, 0.01, 20, dtype=np.float32)[:, None]
    frames = np.random.default_rng(0).integers(0, 256, (20, SIZE, SIZE, 3), dtype=np.uint8)
    episode = Episode(
        frames=dict.fromkeys(CAMERAS, frames), state=rest, action=rest, task="pick up the cube"
    )
    dataset = write_dataset(
        [episode], tmp_path / "data", fps=15, state_names=NAMES, action_names=NAMES
    )
    folder = trained(dataset, tmp_path, view_pooling=[1, 1, 1])
    said = run_stock(
        "lerobot-rollout",
        f"--policy.path={folder}",
        "--strategy.discover_packages_path=policies",
        "--robot.discover_packages_path=deploy.lerobot_robot_fr3",
        "--robot.type=fr3",
        f"--robot.picture_height={SIZE}",
        f"--robot.picture_width={SIZE}",
        "--task=pick up the cube",
        "--fps=15",
        "--duration=2",
        "--play_sounds=false",
        "--return_to_initial_position=false",
        folder=tmp_path,
    )
    assert "Policy loaded: type=vla_adapter" in said
    assert "Robot connected: fr3" in said
