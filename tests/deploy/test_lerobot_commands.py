"""lerobot's own commands on the simulated arm: teleoperate, record, rollout. In processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deploy.lerobot_robot_fr3.fr3 import NAMES
from deploy.limits import RESET_POSE
from deploy.sim.link import SceneLink
from deploy.sim.process import SimulatedArm
from deploy.sim.scene import CAMERAS, CAPTURE_SIZE

pytest.importorskip("franka")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
HELPERS = Path(__file__).parent / "helpers"
PLUGIN = Path(__file__).resolve().parent.parent / "vla_opt" / "plugin"
FPS = 15
NAMED = "--robot.discover_packages_path=deploy.lerobot_robot_fr3"  # where no plug-in is installed
TELEOP = ("--teleop.discover_packages_path=scripted_teleop", "--teleop.type=scripted")


@pytest.fixture(scope="module")
def arm() -> Iterator[SimulatedArm]:
    with SimulatedArm(patience_s=0.2) as simulation:
        yield simulation


@pytest.fixture
def link(arm: SimulatedArm) -> Iterator[SceneLink]:
    connection = arm.link()
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has put the plug-in that makes the robot known to lerobot."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"  # building leaves files behind
    shutil.copytree(ROOT / "plugins" / "lerobot_robot_fr3", source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(folder / "packages"), str(source)], check=True)
    return folder / "packages"


def lerobot(
    command: str, arm: SimulatedArm, home: Path, *words: str, installed: Path | None = None
) -> str:
    """Run a command as a person would; returns what it said."""
    paths = (str(ROOT), str(HELPERS), str(PLUGIN), *([str(installed)] if installed else []))
    done = subprocess.run(
        [
            *(sys.executable, "-m", f"lerobot.scripts.lerobot_{command}"),
            *([] if installed else [NAMED]),
            "--robot.type=fr3",
            f"--robot.robot=sim:{arm.host}",
            "--robot.id=test",
            f"--robot.calibration_dir={home}",
            *words,
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_HUB_OFFLINE": "1",
            "HF_LEROBOT_HOME": str(home),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_teleoperation_moves_the_arm(arm: SimulatedArm, link: SceneLink, tmp_path: Path) -> None:
    begin = link.state().time
    lerobot("teleoperate", arm, tmp_path, *TELEOP, f"--fps={FPS}", "--teleop_time_s=2")
    after = link.state()
    assert after.time - begin > 1.0
    away = np.abs(after.qpos[:7] - RESET_POSE)
    assert 0.003 < away.max() < 0.15, "where the leader left it"
    assert away[1:6].max() < 0.02


def test_recording_makes_a_data_set_of_what_was_executed(
    arm: SimulatedArm, installed: Path, tmp_path: Path
) -> None:
    """The robot is known by its installed plug-in here, as lerobot looks for them."""
    from vla_opt._lerobot_read import DatasetFiles

    root = tmp_path / "set"
    lerobot(
        "record",
        arm,
        tmp_path,
        *TELEOP,
        "--dataset.repo_id=local/fr3",
        f"--dataset.root={root}",
        "--dataset.num_episodes=2",
        "--dataset.episode_time_s=2",
        "--dataset.reset_time_s=0.2",
        f"--dataset.fps={FPS}",
        "--dataset.single_task=sway",
        "--dataset.push_to_hub=false",
        "--play_sounds=false",
        installed=installed,
    )
    files = DatasetFiles(root)
    assert [episode.length > 5 for episode in files.episodes] == [True, True]
    assert files.info["fps"] == FPS
    assert files.features["action"]["names"] == list(NAMES)
    assert {key.rpartition(".")[2] for key in files.camera_keys} == set(CAMERAS)
    columns = files.columns(["action", "observation.state"])
    moved = np.ptp(columns["observation.state"], axis=0)
    assert moved[0] > 0.03
    assert moved[6] > 0.03
    assert np.abs(columns["action"][:, :7] - RESET_POSE).max() < 0.15
    assert set(np.unique(columns["action"][:, 7])) == {0.0, 1.0}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained policy of joint positions around the start posture."""
    sys.path.insert(0, str(PLUGIN))
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from tiny_policy import TinyConfig
    from tiny_policy.modeling_tiny import TinyPolicy
    from tiny_policy.processor_tiny import make_tiny_pre_post_processors

    image = PolicyFeature(type=FeatureType.VISUAL, shape=(3, *CAPTURE_SIZE))
    config = TinyConfig(
        device="cpu",
        input_features={
            **{f"observation.images.{name}": image for name in CAMERAS},
            "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(8,)),
        },
        output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(8,))},
    )
    torch.manual_seed(0)
    folder = tmp_path / "checkpoint"
    TinyPolicy(config).save_pretrained(folder)
    there = {"mean": torch.tensor([*RESET_POSE, 0.0]), "std": torch.full((8,), 0.05)}
    stats = {"observation.state": there, "action": there}
    for processor in make_tiny_pre_post_processors(config, stats):
        processor.save_pretrained(folder)
    return folder


def test_a_policy_is_rolled_out(
    arm: SimulatedArm, link: SceneLink, checkpoint: Path, tmp_path: Path
) -> None:
    begin = link.state().time
    said = lerobot(
        "rollout",
        arm,
        tmp_path,
        "--teleop.discover_packages_path=tiny_policy",
        f"--policy.path={checkpoint}",
        f"--fps={FPS}",
        "--duration=2",
        "--task=stand there",
        "--play_sounds=false",
    )
    after = link.state()
    assert after.time - begin > 2.0, said[-2000:]
    assert np.abs(after.qpos[:7] - RESET_POSE).max() < 0.1
