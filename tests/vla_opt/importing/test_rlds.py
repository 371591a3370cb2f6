"""RLDS episodes become data sets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PLUGIN = Path(__file__).parents[1] / "plugin"
sys.path.insert(0, str(PLUGIN))

from foreign import (  # noqa: E402
    actions_with_pauses,
    is_upright,
    jpeg,
    numbers,
    picture,
    seen,
    serialised,
    tells,
    write_records,
)

from deploy.spec_file import SPEC_FILE, spec_of  # noqa: E402
from vla_opt._lerobot_read import DatasetFiles  # noqa: E402
from vla_opt.errors import DataError  # noqa: E402
from vla_opt.importing import ImportConfig, droid, import_dataset  # noqa: E402


def test_rlds_episodes_keep_their_pairing_and_their_way_up(tmp_path: Path) -> None:
    action = actions_with_pauses()
    state = np.repeat(np.arange(12, dtype=np.float32)[:, None], 8, axis=1)
    pictures = [jpeg(picture(t)) for t in range(12)]
    episode = {
        "steps/observation/image": pictures,
        "steps/observation/wrist_image": pictures,
        "steps/observation/state": state,
        "steps/action": action,
        "steps/language_instruction": [b"open the drawer"] * 12,
        "steps/is_first": (np.arange(12) == 0).astype(int),
        "episode_metadata/file_path": [b"/data/open_the_drawer_demo.hdf5"],
    }
    shard = tmp_path / "libero_goal-train.tfrecord-00000-of-00001"
    write_records(shard, [serialised(episode), serialised(episode)])
    summary = import_dataset(ImportConfig(source=tmp_path, root=tmp_path / "out", verify=True))
    assert (summary.format, summary.episodes, summary.noops) == ("rlds", 2, 4)
    rows = [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]
    table = numbers(tmp_path / "out")
    np.testing.assert_array_equal(table["action"][:10], action[rows])
    np.testing.assert_array_equal(table["observation.state"][:10, 0], rows)
    frames = seen(tmp_path / "out", "image2")[0]
    assert [tells(frame) for frame in frames] == rows
    assert is_upright(frames[0])
    files = DatasetFiles(tmp_path / "out")
    assert files.tasks == ("open the drawer",)
    assert files.notes[0]["file_path"] == "open_the_drawer_demo.hdf5"


def droid_episode(length: int = 6) -> dict[str, Any]:
    """The fields of DROID's release that are read, and one that is not."""
    wide = [jpeg(picture(t, 18, 32)) for t in range(length)]
    rows = np.arange(length, dtype=np.float32)[:, None]
    return {
        "steps/observation/exterior_image_1_left": wide,
        "steps/observation/exterior_image_2_left": wide,
        "steps/observation/wrist_image_left": wide,
        "steps/observation/joint_position": np.repeat(rows, 7, axis=1),
        "steps/observation/gripper_position": rows / 10,
        "steps/action_dict/joint_velocity": np.repeat(-rows, 7, axis=1) / 10,
        "steps/action_dict/gripper_position": rows / 5,
        "steps/action": np.zeros((length, 7), np.float32),  # Cartesian: not what is learned
        "steps/language_instruction": [b""] * length,
        "steps/language_instruction_2": [b"close the lid"] * length,
    }


def test_droids_release_becomes_what_its_raw_folders_become(tmp_path: Path) -> None:
    write_records(tmp_path / "droid-train.tfrecord-00000-of-00001", [serialised(droid_episode())])
    summary = import_dataset(ImportConfig(source=tmp_path, root=tmp_path / "out"))
    assert (summary.format, summary.frames, summary.noops) == ("rlds_droid", 6, 0)
    table = numbers(tmp_path / "out")
    rows = np.arange(6, dtype=np.float32)
    np.testing.assert_allclose(table["observation.state"][:, [0, 7]].T, [rows, rows / 10])
    np.testing.assert_allclose(table["action"][:, [0, 7]].T, [-rows / 10, rows / 5])
    files = DatasetFiles(tmp_path / "out")
    assert files.tasks == ("close the lid",)
    assert files.info["fps"] == droid.FPS
    views = ("exterior_1_left", "exterior_2_left", "wrist_left")
    assert sorted(files.camera_keys) == [f"observation.images.{view}" for view in views]
    assert json.loads((tmp_path / "out/meta" / SPEC_FILE).read_text()) == spec_of(droid.METADATA)


def other_episode(length: int = 5) -> dict[str, Any]:
    pictures = [jpeg(picture(t)) for t in range(length)]
    return {
        "steps/observation/image_0": pictures,
        "steps/observation/natural_language_instruction": [b"wipe the table"] * length,
        "steps/observation/joints": np.ones((length, 6), np.float32),
        "steps/action/delta": np.zeros((length, 3), np.float32),
        "steps/action/open": np.arange(length) % 2,
    }


def test_another_robots_fields_are_named(tmp_path: Path) -> None:
    write_records(tmp_path / "x.tfrecord", [serialised(other_episode())])
    config = ImportConfig(
        source=tmp_path, root=tmp_path / "out", rate=5,
        state_fields=("observation/joints",), action_fields=("action/delta", "action/open"),
    )  # fmt: skip
    summary = import_dataset(config)
    assert (summary.format, summary.frames) == ("rlds_other", 5)  # a step at rest is kept
    np.testing.assert_array_equal(numbers(tmp_path / "out")["action"][:, 3], [0, 1, 0, 1, 0])
    files = DatasetFiles(tmp_path / "out")
    assert (files.info["fps"], files.tasks) == (5, ("wipe the table",))
    assert files.camera_keys == ("observation.images.image_0",)
    assert not (tmp_path / "out/meta/env_spec.json").exists()


def test_another_robot_without_its_rate_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    write_records(tmp_path / "x.tfrecord", [serialised(other_episode())])
    with pytest.raises(DataError, match=r"--rate=HZ.*Found: steps/action/delta"):
        import_dataset(ImportConfig(source=tmp_path, root=tmp_path / "out"))
    wrong = ImportConfig(
        source=tmp_path, root=tmp_path / "out", rate=5,
        state_fields=("observation/joint",), action_fields=("action/delta",),
    )  # fmt: skip
    with pytest.raises(
        DataError, match=r"no `steps/observation/joint`.*Did you mean 'steps/observation/joints'"
    ):
        import_dataset(wrong)
