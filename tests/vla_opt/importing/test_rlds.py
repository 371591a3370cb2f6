"""RLDS episodes become data sets."""

from __future__ import annotations

import sys
from pathlib import Path

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

from vla_opt._lerobot_read import DatasetFiles  # noqa: E402
from vla_opt.errors import DataError  # noqa: E402
from vla_opt.importing import ImportConfig, import_dataset  # noqa: E402


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


def test_rlds_of_another_robot_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    write_records(tmp_path / "x.tfrecord", [serialised({"steps/reward": np.ones(3, np.float32)})])
    with pytest.raises(DataError, match=r"no `steps/action`.*found steps/reward"):
        import_dataset(ImportConfig(source=tmp_path, root=tmp_path / "out"))
