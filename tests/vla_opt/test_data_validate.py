"""Data that would spoil a policy are named; sound ones pass; the page needs no network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from envs.spec import EnvSpec, ImageSpec
from vla_opt._data_contract import own_findings
from vla_opt._data_validate import validate_dataset
from vla_opt._lerobot_read import DatasetFiles
from vla_opt.cli.main import main
from vla_opt.data import Episode, write_dataset

SIZE, LENGTH = 32, 60
SPEC = EnvSpec(images={"image": ImageSpec(height=SIZE, width=SIZE)})


def episode(seed: int, sign: float = 1.0, length: int = LENGTH) -> Episode:
    """A grasp in LIBERO's terms: the fingers follow the gripper's command."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-0.9, 0.9, (length, 7)).astype(np.float32)
    action[:, 6] = sign * np.where(np.arange(length) < length // 2, -1, 1)
    state = rng.uniform(-0.5, 0.5, (length, 8)).astype(np.float32)
    finger = np.interp(np.arange(length), [length // 2, length // 2 + 6], [0.04, 0.01])
    state[:, 6], state[:, 7] = finger, -finger
    return Episode(
        frames={"image": rng.integers(0, 255, (length, SIZE, SIZE, 3), dtype=np.uint8)},
        state=state,
        action=action,
        task="lift the cup",
    )


def write(root: Path, episodes: list[Episode], spec: EnvSpec | None = SPEC) -> Path:
    files = {} if spec is None else {"env_spec.json": spec.to_dict()}
    named = {"state_names": SPEC.state_names, "action_names": SPEC.action_names}
    return write_dataset(iter(episodes), root, meta_files=files, **named)


def verdicts(root: Path) -> dict[str, str]:
    return {f.item: f.verdict for f in validate_dataset(root)}


def change(root: Path, column: str, edit: Any) -> None:
    """Edit a column of the table as a careless tool would."""
    (path,) = (root / "data").glob("*/*.parquet")
    table = pyarrow.parquet.read_table(path)
    values = np.array(table[column].to_pylist(), np.float32)
    edit(values)
    place = table.schema.get_field_index(column)
    array = pyarrow.array(values.tolist(), type=table.schema.field(column).type)
    pyarrow.parquet.write_table(table.set_column(place, table.schema.field(column), array), path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "sound", [episode(n) for n in range(3)])


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(sound, tmp_path / "copy"))


def test_sound_data_pass_every_check(sound: Path) -> None:
    found = verdicts(sound)
    assert set(found.values()) == {"match"}
    assert {"frame rate", "gripper polarity", "action range", "no-ops", "statistics"} <= set(found)


def test_nan_is_located(copy: Path) -> None:
    def edit(values: np.ndarray) -> None:
        values[70, 2] = np.nan

    change(copy, "action", edit)
    (finding,) = [f for f in validate_dataset(copy) if f.verdict == "differs"]
    assert finding.item == "finite action"
    assert "row 70, dz" in finding.ours


def test_times_that_drift_from_the_rate_are_found(copy: Path) -> None:
    def edit(values: np.ndarray) -> None:
        values *= 1.02

    change(copy, "timestamp", edit)
    assert verdicts(copy)["frame rate"] == "differs"


def test_actions_beyond_the_limits_and_wrong_statistics_are_warnings(copy: Path) -> None:
    def edit(values: np.ndarray) -> None:
        values[5:20, 0] = 3.0

    change(copy, "action", edit)
    found = verdicts(copy)
    assert (found["action range"], found["statistics"]) == ("warning", "warning")


def test_a_reversed_gripper_is_a_defect_where_its_polarity_is_declared(tmp_path: Path) -> None:
    reversed_ = [episode(n, sign=-1.0) for n in range(3)]
    assert verdicts(write(tmp_path / "a", reversed_))["gripper polarity"] == "differs"
    assert "gripper polarity" not in verdicts(write(tmp_path / "b", reversed_, spec=None))


def test_pauses_and_broken_off_episodes_are_warnings(tmp_path: Path) -> None:
    paused = episode(0)
    paused.action[10:20, :6] = 0
    short = episode(4, length=8)
    root = write(tmp_path / "a", [paused, episode(1), episode(2), short])
    found = verdicts(root)
    assert (found["no-ops"], found["short episodes"]) == ("warning", "warning")


def test_a_declaration_that_does_not_hold_is_a_defect(copy: Path) -> None:
    said = {**SPEC.to_dict(), "control_hz": 10}
    said["images"] = {"image": {"height": 64, "width": 64, "rotation_deg": 180}}
    (copy / "meta/env_spec.json").write_text(json.dumps(said))
    differs = {f.item for f in own_findings(DatasetFiles(copy)) if f.verdict == "differs"}
    assert differs == {"observation.images.image", "control_hz"}


def test_a_truncated_video_is_found(copy: Path) -> None:
    (path,) = (copy / "videos").rglob("*.mp4")
    path.unlink()
    assert verdicts(copy)["frames of observation.images.image"] == "differs"


def test_validate_says_it_with_its_exit_code(
    sound: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "validate", f"--root={sound}", "--strict=true"]) == 0
    assert "0 defects, 0 warnings" in capsys.readouterr().out

    def edit(values: np.ndarray) -> None:
        values[0, 0] = np.inf

    change(copy, "observation.state", edit)
    assert main(["data", "validate", f"--root={copy}"]) == 1
    assert "leave these episodes out" in capsys.readouterr().out


def test_the_page_holds_statistics_histograms_and_videos_and_asks_no_network(
    sound: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    assert main(["data", "inspect", f"--root={sound}", f"--out={out}", "--episodes=2"]) == 0
    text = out.read_text()
    assert text.count("data:video/mp4;base64,") == 2
    assert text.count("data:image/jpeg;base64,") == 6
    assert text.count('class="chart"') == 1 + 8 + 7
    assert "lift the cup" in text
    mean = DatasetFiles(sound).columns(["action"])["action"][:, 0].mean()
    row = re.search(r"<td>dx</td><td[^>]*>([^<]*)</td>", text)
    assert row is not None
    assert float(row.group(1)) == pytest.approx(mean, abs=1e-3, rel=1e-3)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
