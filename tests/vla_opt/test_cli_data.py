"""`vla-opt data` tells what a data set holds and whether it can be trusted."""

import json
import shutil
from pathlib import Path

import pytest

from vla_opt.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main(["data", *map(str, words)])
    return code, *capsys.readouterr()


@pytest.fixture
def root(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "dataset"))


def test_info_lists_episodes_features_and_tasks(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "info", f"--root={root}")
    assert code == 0
    assert "3 episodes, 70 frames at 20 Hz" in out
    assert "17 to 30 frames, median 23" in out
    assert "2 x put the soup into the basket" in out
    assert "1 x open the drawer" in out
    assert "observation.images.image2" in out


def test_cache_is_made_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "cache", f"--root={root}", "--image_size=16")
    assert code == 0
    assert "70 frames of 16x16" in out
    made = (root.parent / "cache").stat().st_ino
    assert run(capsys, "cache", f"--root={root}", "--image_size=16")[0] == 0
    assert (root.parent / "cache").stat().st_ino == made


def test_wrong_statistics_fail_the_check_until_they_are_mended(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "check", f"--root={root}")[0] == 0
    path = root / "meta/stats.json"
    stats = json.loads(path.read_text())
    stats["action"]["q99"][4] *= 0.5
    path.write_text(json.dumps(stats))
    code, out, _ = run(capsys, "check", f"--root={root}")
    assert code == 1
    assert "WRONG action: q99[4] is stored as" in out
    assert run(capsys, "check", f"--root={root}", "--fix=true")[0] == 0
    assert run(capsys, "check", f"--root={root}")[0] == 0


def test_damaged_cache_fails_the_check(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "cache", f"--root={root}")
    words = ("check", f"--root={root}", f"--cache_dir={root.parent / 'cache'}")
    assert run(capsys, *words)[0] == 0
    path = root.parent / "cache/images.npy"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    code, _, errors = run(capsys, *words)
    assert code == 1
    assert "images.npy is damaged" in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("inof",), "Did you mean 'info'"),
        (("info", "--rot=x"), "Did you mean 'root'"),
        (("info",), "'root' has no default"),
    ],
)
def test_wrong_words_are_answered_with_the_right_ones(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    code, _, errors = run(capsys, *words)
    assert code == 2
    assert message in errors


def test_no_dataset_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = run(capsys, "info", f"--root={tmp_path}")
    assert code == 1
    assert errors.count("\n") == 1
    assert "is not a LeRobotDataset" in errors
