"""LIBERO's hdf5 files become data sets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

PLUGIN = Path(__file__).parents[1] / "plugin"
sys.path.insert(0, str(PLUGIN))

from foreign import SIZE, actions_with_pauses, is_upright, numbers, seen, tells, write_libero  # noqa: E402

from vla_opt._lerobot_read import DatasetFiles  # noqa: E402
from vla_opt.errors import DataError  # noqa: E402
from vla_opt.importing import ImportConfig, import_dataset  # noqa: E402


def test_libero_becomes_a_data_set_with_its_contract(libero: Path, tmp_path: Path) -> None:
    summary = import_dataset(ImportConfig(source=libero, root=tmp_path / "out"))
    assert (summary.format, summary.episodes, summary.noops) == ("libero", 2, 4)
    files = DatasetFiles(tmp_path / "out")
    assert files.tasks == ("put the bowl on the plate",)
    assert [note["demo"] for note in files.notes] == ["demo_2", "demo_10"]
    spec = json.loads((files.root / "meta/env_spec.json").read_text())
    assert (spec["control_hz"], spec["render_profile"]) == (20, "exact")
    assert spec["images"]["image2"] == {"height": SIZE, "width": SIZE, "rotation_deg": 180}
    note = json.loads((files.root / "meta/import.json").read_text())
    assert (note["noops"], note["noop_threshold"], note["pairing"]) == (4, 1e-4, "before")
    from lerobot.datasets import LeRobotDataset

    stock = LeRobotDataset("local/x", root=files.root, video_backend="pyav")
    assert (stock.num_episodes, stock.num_frames) == (2, summary.frames)


def test_each_action_follows_the_observation_it_is_paired_with(
    libero: Path, tmp_path: Path
) -> None:
    import_dataset(ImportConfig(source=libero, root=tmp_path / "out", limit=1, drop_noops=False))
    table, stored = numbers(tmp_path / "out"), actions_with_pauses()
    np.testing.assert_array_equal(table["action"], stored[1:])
    np.testing.assert_array_equal(table["observation.state"][:, 0], np.arange(11))
    (frames,) = seen(tmp_path / "out", "image")
    assert [tells(frame) for frame in frames] == list(range(11))
    assert all(is_upright(frame) for frame in frames)


def test_as_stored_pairs_as_the_file_does(libero: Path, tmp_path: Path) -> None:
    config = ImportConfig(
        source=libero, root=tmp_path / "out", limit=1, drop_noops=False, pairing="as_stored"
    )
    import_dataset(config)
    table = numbers(tmp_path / "out")
    np.testing.assert_array_equal(table["action"], actions_with_pauses())
    np.testing.assert_array_equal(table["observation.state"][:, 0], np.arange(12))


def test_the_file_name_tells_the_instruction_where_the_file_does_not(tmp_path: Path) -> None:
    path = tmp_path / "KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5"
    write_libero(path, {"demo_0": actions_with_pauses()}, problem_info="{}")
    import_dataset(ImportConfig(source=path, root=tmp_path / "out"))
    assert DatasetFiles(tmp_path / "out").tasks == ("turn on the stove",)


def test_a_broken_demonstration_stops_the_import_or_is_left_out(
    libero: Path, tmp_path: Path
) -> None:
    path = next(libero.glob("*.hdf5"))
    with h5py.File(path, "a") as file:
        del file["data/demo_2/obs/gripper_states"]
    config = ImportConfig(source=libero, root=tmp_path / "out")
    with pytest.raises(DataError, match=r"demo_2 has no `gripper_states`, only agentview_rgb"):
        import_dataset(config)
    assert not (tmp_path / "out").exists()
    summary = import_dataset(ImportConfig(source=libero, root=tmp_path / "out", skip_broken=True))
    assert summary.episodes == 1
    assert "demo_2" in summary.skipped[0]
