"""Nothing recorded is lost, and what comes out is a data set that stock lerobot opens."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from arms import IdealArm, IdealGripper, StillCamera

from deploy.limits import RESET_POSE
from deploy.metadata import ServerMetadata
from deploy.recording import EpisodeRecorder, RecordedFrame, RecordingEnv, read_episode
from deploy.robot import Robot
from deploy.robot_env import RobotEnv
from deploy.safety import FULL
from vla_opt.errors import DataError

SPEC = ServerMetadata(
    action_space="joint_velocity", action_dim=8, control_hz=15, controller_profile="droid"
)


def frame(step: int) -> RecordedFrame:
    image = np.full((32, 48, 3), step * 10, np.uint8)
    return RecordedFrame(
        images={"exterior_left": image, "wrist": 255 - image},
        state=np.arange(8.0) + step,
        action=np.arange(8.0) / 10 - step,
        time_s=step / 15 + 0.001,
    )


def recorded(folder: Path, lengths: tuple[int, ...] = (6, 4)) -> EpisodeRecorder:
    recorder = EpisodeRecorder(folder, SPEC)
    for length in lengths:
        recorder.begin("put the cube in the bowl")
        for step in range(length):
            recorder.add(frame(step))
        recorder.finish(success=True)
    return recorder


def test_an_episode_survives_on_disk_as_it_was(tmp_path: Path) -> None:
    recorder = recorded(tmp_path)
    episode = read_episode(recorder.episodes[1])
    assert len(episode) == 4
    assert episode.task == "put the cube in the bowl"
    np.testing.assert_allclose(episode.state[2], np.arange(8) + 2)
    np.testing.assert_array_equal(episode.frames["wrist"][3], frame(3).images["wrist"])
    assert episode.meta["success"] is True
    assert episode.meta["times_s"][1] == pytest.approx(1 / 15 + 0.001)
    assert episode.meta["spec"]["controller_profile"] == "droid"


def test_a_full_disk_loses_neither_the_running_episode_nor_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = recorded(tmp_path, (5,))
    recorder.begin("again")
    recorder.add(frame(0))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vla_opt.io.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            recorder.finish()
    assert [len(read_episode(path)) for path in recorder.episodes] == [5]
    assert len(read_episode(recorder.finish())) == 1  # space was freed


def test_a_second_session_continues_the_numbers(tmp_path: Path) -> None:
    recorded(tmp_path, (2, 2))
    names = [path.name for path in recorded(tmp_path, (3,)).episodes]
    assert names == ["episode_000000.npz", "episode_000001.npz", "episode_000002.npz"]


def test_damaged_and_empty_episodes_are_refused(tmp_path: Path) -> None:
    recorder = recorded(tmp_path, (2,))
    recorder.episodes[0].write_bytes(recorder.episodes[0].read_bytes()[:100])
    with pytest.raises(DataError, match="remove it"):
        read_episode(recorder.episodes[0])
    recorder.begin("nothing")
    with pytest.raises(DataError, match="no frames"):
        recorder.finish()


def test_an_environment_records_what_the_filter_let_through(tmp_path: Path) -> None:
    robot = Robot(
        arm=IdealArm(cycle_s=1 / 15),
        gripper=IdealGripper(),
        cameras={"wrist": StillCamera(0.0, (16, 16))},
        profile=FULL,
    )
    recorder = EpisodeRecorder(tmp_path, SPEC)
    env = RecordingEnv(
        RobotEnv("joint_velocity", "position", do_reset=False, robot=robot), recorder
    )
    env.reset()
    recorder.begin("move")
    env.step(np.append(np.full(7, 0.05), 0.0))
    env.step(np.full(8, np.nan))  # braked, not executed: no label
    env.step(np.append(np.full(7, 4.0), 1.0))  # far too fast: the label is what was done
    episode = read_episode(recorder.finish())
    assert len(episode) == 2
    np.testing.assert_allclose(episode.action[0, :7], 0.05, atol=1e-6)
    assert np.abs(episode.action[1, :7]).max() <= 1.0
    np.testing.assert_allclose(episode.state[0, :7], RESET_POSE, atol=0.01)
    assert episode.frames["wrist"][0, 0, 0].tolist() == [200, 0, 0]  # RGB


@pytest.mark.slow
def test_the_data_set_opens_in_stock_lerobot_and_says_what_its_actions_mean(
    tmp_path: Path,
) -> None:
    from lerobot.datasets import LeRobotDataset

    root = recorded(tmp_path / "spool").export(tmp_path / "dataset")
    dataset = LeRobotDataset("local/recorded", root=root)
    assert dataset.fps == 15
    assert dataset.num_episodes == 2
    assert len(dataset) == 10
    row = dataset[7]
    np.testing.assert_allclose(row["observation.state"], np.arange(8) + 1)
    assert set(dataset.meta.camera_keys) == {
        "observation.images.exterior_left",
        "observation.images.wrist",
    }
    assert dataset.meta.features["action"]["names"][0] == "joint_1.vel"
    spec = json.loads((root / "meta" / "deploy_spec.json").read_text())
    assert spec["controller_profile"] == "droid"
