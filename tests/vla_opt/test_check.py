"""`vla-opt check`, and that training looks before it starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from envs.rollout import RolloutConfig
from envs.spec import EnvSpec
from vla_opt._data_contract import check_training, checkpoint_findings
from vla_opt._lerobot_read import DatasetFiles
from vla_opt.cli.main import main
from vla_opt.config import DataConfig, TrainConfig
from vla_opt.contracts import lines
from vla_opt.data import Episode, write_dataset
from vla_opt.evaluation.config import EvalConfig
from vla_opt.evaluation.contract import ContractError, contract_findings, open_checkpoint

SIZE = 32
ENV = RolloutConfig(image_size=SIZE).env_spec
PRE = "policy_preprocessor_step_3_normalizer_processor.safetensors"
POST = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"


def statistics(**changes: Any) -> dict[str, np.ndarray]:
    """What a checkpoint of LIBERO carries, the hand pointing down: about pi around x."""
    centre = np.array([0.0, 0.0, 0.2, 3.1, 0.0, 0.0, 0.02, -0.02])
    reach = np.array([0.3, 0.3, 0.3, 0.3, 0.5, 0.5, 0.02, 0.02])
    stats = {
        "observation.state.mean": centre,
        "observation.state.std": reach / 2,
        "observation.state.min": centre - reach,
        "observation.state.max": centre + reach,
        "action.min": np.full(7, -1.0),
        "action.max": np.full(7, 1.0),
    }
    return {key: np.asarray(value, np.float32) for key, value in {**stats, **changes}.items()}


def write_checkpoint(folder: Path, spec: EnvSpec | None = ENV, **changes: Any) -> Path:
    """The JSON and statistics of a checkpoint; its weights are never looked at."""
    folder.mkdir(parents=True)
    image = {"type": "VISUAL", "shape": [3, SIZE, SIZE]}
    config = {
        "type": "vla_adapter",
        "n_obs_steps": 1,
        "chunk_size": 8,
        "input_features": {
            "observation.images.image": image,
            "observation.images.image2": image,
            "observation.state": {"type": "STATE", "shape": [8]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [7]}},
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MIN_MAX"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    if spec is not None:
        (folder / "env_spec.json").write_text(json.dumps(spec.to_dict()))
    stats = statistics(**changes)
    save_file(stats, folder / PRE)
    save_file({k: v for k, v in stats.items() if k.startswith("action.")}, folder / POST)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


def differing(folder: Path) -> list[str]:
    return lines(contract_findings(open_checkpoint(folder), ENV, execute_steps=4), "differs")


# -- an environment --------------------------------------------------------------------------------


def test_a_fitting_checkpoint_passes(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(checkpoint), "--env=libero_object"]) == 0
    out = capsys.readouterr().out
    assert "gripper range" in out
    assert "0 differ" in out


def test_a_gripper_from_0_to_1_does_not_fit_one_from_minus_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low = np.full(7, -1.0)
    low[6] = 0.0
    folder = write_checkpoint(tmp_path / "c", **{"action.min": low})
    (line,) = differing(folder)
    assert "gripper range: 0 .. 1 against -1 open .. 1 closed" in line
    assert main(["check", str(folder), "--env=libero_object"]) == 1
    assert "its polarity is another" in capsys.readouterr().out


def test_missing_statistics_and_two_sets_of_them_are_found(checkpoint: Path) -> None:
    stats = load_file(checkpoint / PRE)
    save_file({k: v for k, v in stats.items() if not k.endswith(".std")}, checkpoint / PRE)
    assert "MEAN_STD needs std" in differing(checkpoint)[0]
    save_file({**stats, "action.max": np.full(7, 2.0, np.float32)}, checkpoint / PRE)
    assert "action statistics, in and out: max differ" in differing(checkpoint)[0]


def test_a_state_divided_by_less_than_its_floor_is_pointed_out(tmp_path: Path) -> None:
    std = statistics()["observation.state.std"]
    std[6] = 1e-4
    folder = write_checkpoint(tmp_path / "c", **{"observation.state.std": std})
    config = json.loads((folder / "config.json").read_text())
    warned = lines(contract_findings(open_checkpoint(folder), ENV, execute_steps=4), "warning")
    assert not any("standard deviation" in line for line in warned)  # no floor is asked for
    (folder / "config.json").write_text(json.dumps({**config, "state_std_floor": 0.01}))
    warned = lines(contract_findings(open_checkpoint(folder), ENV, execute_steps=4), "warning")
    assert any("0.0001 in dimension 6 against at least 0.01" in line for line in warned)


def test_nothing_to_compare_with_and_unknown_suites_are_usage_errors(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(checkpoint)]) == 2
    assert "give --env=, --dataset= or --robot=" in capsys.readouterr().err
    assert main(["check", str(checkpoint), "--env=libero_objekt"]) == 2
    assert "libero_object" in capsys.readouterr().err


def test_the_executed_part_of_a_chunk_is_compared(checkpoint: Path) -> None:
    assert main(["check", str(checkpoint), "--env=libero_object", "--execute_steps=9"]) == 1


@pytest.mark.sim
@pytest.mark.slow
def test_a_probe_tells_a_rotation_of_the_other_sign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = write_checkpoint(tmp_path / "known")
    words = ["--env=libero_object", "--probe=true"]
    assert main(["check", str(known), *words]) == 0
    stats = statistics()
    low, high = stats["observation.state.min"].copy(), stats["observation.state.max"].copy()
    low[3], high[3] = -high[3], -low[3]
    mirrored = {"observation.state.min": low, "observation.state.max": high}
    capsys.readouterr()
    assert main(["check", str(write_checkpoint(tmp_path / "m", **mirrored)), *words]) == 1
    assert "mirrored" in capsys.readouterr().out


# -- a robot ---------------------------------------------------------------------------------------


def test_a_libero_policy_does_not_fit_a_droid_robot(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(checkpoint), "--robot=droid"]) == 1
    out = capsys.readouterr().out
    for term in ("action_space", "control_hz", "gripper", "observation/state"):
        assert f"DIFFERS  {term}" in out


def droid_checkpoint(folder: Path, **said: Any) -> Path:
    write_checkpoint(folder, spec=None)
    config = json.loads((folder / "config.json").read_text())
    image = {"type": "VISUAL", "shape": [3, 180, 320]}
    config["input_features"] = {
        "observation.images.exterior_1_left": image,
        "observation.images.wrist_left": image,
        "observation.state": {"type": "STATE", "shape": [8]},
    }
    config["output_features"] = {"action": {"type": "ACTION", "shape": [8]}}
    config["normalization_mapping"] = {}
    config["chunk_size"] = 15
    (folder / "config.json").write_text(json.dumps(config))
    if said:
        (folder / "deploy_spec.json").write_text(json.dumps(said))
    return folder


def test_a_droid_policy_fits_the_controller_it_was_trained_under(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"action_space": "joint_velocity", "control_hz": 15.0, "controller_profile": "droid"}
    folder = droid_checkpoint(tmp_path / "c", **said)
    assert main(["check", str(folder), "--robot=droid"]) == 0
    assert main(["check", str(folder), "--robot=franka-rs-joint"]) == 1
    assert "DIFFERS  controller_profile" in capsys.readouterr().out


def test_an_action_space_that_nobody_states_does_not_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = droid_checkpoint(tmp_path / "c")
    assert main(["check", str(folder), "--robot=droid"]) == 1
    assert "state what the actions mean" in capsys.readouterr().out
    words = [str(folder), "--robot=droid", "--stated_action_space=joint_velocity"]
    assert main(["check", *words]) == 0


# -- data ------------------------------------------------------------------------------------------


def episodes(sign: float = 1.0, mirror: float = 1.0) -> list[Episode]:
    made = []
    for seed in range(2):
        rng, length = np.random.default_rng(seed), 60
        action = rng.uniform(-0.9, 0.9, (length, 7)).astype(np.float32)
        closes = np.arange(length) >= 30
        action[:, 6] = sign * np.where(closes, 1, -1)
        state = rng.uniform(-0.2, 0.2, (length, 8)).astype(np.float32)
        state[:, 2] += 0.2
        state[:, 3] = mirror * rng.uniform(3.0, 3.2, length)
        finger = np.interp(np.arange(length), [30, 36], [0.035, 0.01])
        state[:, 6], state[:, 7] = finger, -finger
        frames = rng.integers(0, 255, (length, SIZE, SIZE, 3), dtype=np.uint8)
        views = {"image": frames, "image2": frames}
        made.append(Episode(frames=views, state=state, action=action, task="lift"))
    return made


def write_data(root: Path, **how: float) -> Path:
    return write_dataset(
        iter(episodes(**how)),
        root,
        state_names=ENV.state_names,
        action_names=ENV.action_names,
        meta_files={"env_spec.json": ENV.to_dict()},
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "sound")


def test_a_checkpoint_fits_data_of_its_kind(checkpoint: Path, sound: Path) -> None:
    found = checkpoint_findings(open_checkpoint(checkpoint), DatasetFiles(sound))
    assert lines(found, "differs") == []
    assert lines(found, "warning") == []
    assert main(["check", str(checkpoint), f"--dataset={sound}"]) == 0


def test_data_with_rotations_of_the_other_sign_do_not_fit(checkpoint: Path, tmp_path: Path) -> None:
    root = write_data(tmp_path / "mirrored", mirror=-1.0)
    found = checkpoint_findings(open_checkpoint(checkpoint), DatasetFiles(root))
    (line,) = lines(found, "differs")
    assert line.startswith("range of observation.state, eef_rx")
    assert "mirrored" in line


def training(root: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(data=DataConfig(root=root), **changes)


def test_training_starts_on_sound_data_without_a_word(sound: Path) -> None:
    assert check_training(training(sound)) == []


def test_training_does_not_start_on_a_reversed_gripper(tmp_path: Path) -> None:
    root = write_data(tmp_path / "reversed", sign=-1.0)
    with pytest.raises(ContractError, match="gripper polarity: low open against high open"):
        check_training(training(root))


def test_training_does_not_start_towards_an_evaluation_that_cannot_run(sound: Path) -> None:
    evaluation = EvalConfig(execute_steps=50)
    check_training(training(sound, eval=evaluation))
    with pytest.raises(ContractError, match="chunk_size: 8 against execute_steps 50"):
        check_training(training(sound, eval=evaluation, eval_every=10))


def test_training_on_from_a_checkpoint_of_another_kind_is_a_warning(
    checkpoint: Path, sound: Path
) -> None:
    shutil.copy(checkpoint / PRE, checkpoint / "copy")
    spec = {**ENV.to_dict(), "control_hz": 10}
    (checkpoint / "env_spec.json").write_text(json.dumps(spec))
    config = training(sound)
    config.policy.pretrained_path = checkpoint
    (warning,) = check_training(config)
    assert "control_hz: 10 against 20" in warning
