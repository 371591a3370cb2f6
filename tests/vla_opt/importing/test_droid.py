"""Raw folders of DROID become data sets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

PLUGIN = Path(__file__).parents[1] / "plugin"
sys.path.insert(0, str(PLUGIN))

from foreign import numbers, seen, write_video  # noqa: E402

from vla_opt._lerobot_read import DatasetFiles  # noqa: E402
from vla_opt.errors import DataError  # noqa: E402
from vla_opt.importing import ImportConfig, import_dataset  # noqa: E402


def write_droid(folder: Path, length: int = 8, **metadata: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    arrays = {
        "action/joint_velocity": rng.uniform(-1, 1, (length, 7)),
        "action/gripper_position": rng.uniform(0, 1, length),
        "observation/robot_state/joint_positions": rng.normal(size=(length, 7)),
        "observation/robot_state/gripper_position": rng.uniform(0, 1, length),
        "observation/controller_info/movement_enabled": np.arange(length) > 1,
    }
    kinds = {"20521388": 1, "14846828": 0, "29838012": 1}
    folder.mkdir(parents=True)
    with h5py.File(folder / "trajectory.h5", "w") as file:
        for key, values in arrays.items():
            file[key] = values
        for serial, kind in kinds.items():
            file[f"observation/camera_type/{serial}"] = np.full(length, kind)
    for serial in kinds:
        shade = 40 * sorted(kinds).index(serial)
        frames = [np.full((72, 128, 3), shade + 10 * t, np.uint8) for t in range(length)]
        write_video(folder / "recordings/MP4" / f"{serial}.mp4", frames, 15)
    if metadata:
        (folder / "metadata_IRIS+a1b2+2023.json").write_text(json.dumps(metadata))
    return arrays


def test_droid_becomes_velocities_with_their_controller(tmp_path: Path) -> None:
    arrays = write_droid(
        tmp_path / "raw/success/one", current_task="lid on pot", ext1_cam_serial="29838012"
    )
    summary = import_dataset(ImportConfig(source=tmp_path / "raw", root=tmp_path / "out"))
    assert (summary.format, summary.episodes, summary.frames, summary.noops) == ("droid", 1, 6, 2)
    table = numbers(tmp_path / "out")
    expected = np.column_stack([arrays["action/joint_velocity"], arrays["action/gripper_position"]])
    np.testing.assert_allclose(table["action"], expected[2:], atol=1e-6)
    files = DatasetFiles(tmp_path / "out")
    assert files.fps == 15
    assert files.tasks == ("lid on pot",)
    assert files.image_size("observation.images.wrist_left") == (180, 320)
    spec = json.loads((files.root / "meta/deploy_spec.json").read_text())
    assert spec["action_space"] == "joint_velocity"
    assert spec["controller_profile"] == "droid"
    # The metadata name the second serial as the first exterior camera.
    means = {
        view: float(seen(tmp_path / "out", view)[0][0].mean())
        for view in ("exterior_1_left", "exterior_2_left", "wrist_left")
    }
    shades = {"exterior_1_left": 100, "exterior_2_left": 60, "wrist_left": 20}
    assert means == pytest.approx(shades, abs=4)


def test_droid_names_are_those_its_policies_ask_for() -> None:
    from policies import droid
    from vla_opt.importing.droid import ACTION_NAMES, STATE_NAMES

    assert STATE_NAMES == droid.STATE_NAMES
    assert droid.ACTION_SPACES["joint_velocity"].names == ACTION_NAMES


def test_droid_without_an_instruction_asks_for_one(tmp_path: Path) -> None:
    write_droid(tmp_path / "raw/one", lab="IRIS")
    config = ImportConfig(source=tmp_path / "raw", root=tmp_path / "out")
    with pytest.raises(DataError, match=r"no instruction.*--annotations=FILE, or --task"):
        import_dataset(config)
    told = tmp_path / "annotations.json"
    told.write_text(json.dumps({"IRIS+a1b2+2023": {"language_instruction1": "close the box"}}))
    import_dataset(ImportConfig(source=tmp_path / "raw", root=tmp_path / "out", annotations=told))
    assert DatasetFiles(tmp_path / "out").tasks == ("close the box",)


def test_a_short_video_of_droid_is_found(tmp_path: Path) -> None:
    write_droid(tmp_path / "raw/one", current_task="x")
    video = tmp_path / "raw/one/recordings/MP4/14846828.mp4"
    write_video(video, [np.zeros((72, 128, 3), np.uint8)] * 5, 15)
    with pytest.raises(DataError, match="has 5 frames for 8 steps"):
        import_dataset(ImportConfig(source=tmp_path / "raw", root=tmp_path / "out"))
