"""Whatever dies, hangs or fills up: each episode ends once, with the undisturbed numbers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

import reach  # noqa: E402

from vla_opt.errors import ConfigError  # noqa: E402
from vla_opt.evaluation.config import EvalConfig, episode_keys  # noqa: E402
from vla_opt.evaluation.records import EpisodeRecord, load_records  # noqa: E402
from vla_opt.evaluation.runner import EvalSummary, evaluate  # noqa: E402
from vla_opt.io import read_jsonl  # noqa: E402

TASKS, STATES = (0, 1), 12
_CHANGING = ("wall_s", "cpu_s", "worker", "retries", "timestamp")


def config_of(checkpoint: Path, folder: Path, **changes: Any) -> EvalConfig:
    defaults: dict[str, Any] = {
        "checkpoint": checkpoint,
        "task_ids": TASKS,
        "episodes": STATES,
        "image_size": reach.SIZE,
        "backend": "serial",
        "videos": "all",
        "output_dir": folder / "eval",
    }
    return EvalConfig(**{**defaults, **changes})


def numbers(folder: Path, record: EpisodeRecord) -> tuple[dict[str, Any], bytes]:
    """What of a row may depend on nothing but the episode; the film holds all the policy saw."""
    row = {name: value for name, value in record.to_dict().items() if name not in _CHANGING}
    return row, (folder / "eval" / str(record.video)).read_bytes()


def all_numbers(folder: Path) -> dict[str, Any]:
    rows = load_records(folder / "eval" / "episodes.jsonl")
    return {record.label: numbers(folder, record) for record in rows if record.scored}


def rows_per_episode(folder: Path) -> Counter[str]:
    rows = read_jsonl(folder / "eval" / "episodes.jsonl")
    return Counter(EpisodeRecord.from_dict(row).label for row in rows)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reach.write_checkpoint(tmp_path_factory.mktemp("policy") / "servo")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with reach.reaching(folder):
        summary = evaluate(config_of(checkpoint, folder))
    assert 0 < summary.successes < summary.scored == len(TASKS) * STATES
    assert summary.errors == 0
    found = all_numbers(folder)
    assert len({film for _, film in found.values()}) == len(found)  # no two episodes are alike
    return found


@contextlib.contextmanager
def memory_group(name: str, limit: int) -> Iterator[Path | None]:
    """A control group with that much memory, None where this user may not make one."""
    files = {"memory": "memory.limit_in_bytes", "": "memory.max"}
    for parent, file in files.items():
        group = Path("/sys/fs/cgroup", parent, name)
        try:
            group.mkdir()
            (group / file).write_text(str(limit))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        try:
            yield group
        finally:
            wait_until(lambda group=group: not (group / "cgroup.procs").read_text())  # type: ignore[misc]
            group.rmdir()
        return
    yield None


def wait_until(condition: Callable[[], object], seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


# -- faults of workers and of the policy -----------------------------------------------------------


def disturbed(checkpoint: Path, folder: Path, faults: dict[str, str]) -> EvalSummary:
    config = config_of(
        checkpoint, folder, backend="ray", num_workers=2, timeout_s=20.0, max_retries=3
    )
    with reach.reaching(folder, faults):
        return evaluate(config)


@pytest.mark.slow
def test_dying_hanging_and_raising_workers_change_no_number(
    checkpoint: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    faults = {
        "0/1": "kill@step",
        "0/3": "no_memory@step",
        "0/5": "raise@reset",
        "0/6": "raise!@reset",
        "0/8": "kill_policy@step",
        "1/1": "abort@step",
        "1/4": "hang@step",
        "1/7": "freeze@step",
        "1/9": "kill@reset",
    }
    with memory_group(f"vla_chaos_{os.getpid()}", 200 << 20) as group:
        if group is not None:
            faults["1/3"] = "out_of_memory@step"
            (tmp_path / "memory_group").write_text(str(group))
        summary = disturbed(checkpoint, tmp_path, faults)
    fired = {file.name for file in tmp_path.glob("fired_*")}
    assert len(fired) == len(faults) - 1, "not every fault came about"
    assert set(rows_per_episode(tmp_path).values()) == {1}
    assert len(summary.records) == len(undisturbed)
    (lost,) = [record for record in summary.records if not record.scored]
    assert (lost.task_id, lost.init_state, lost.retries) == (0, 6, 3)
    assert "the scene cannot be drawn" in str(lost.error)
    assert sum(record.retries for record in summary.records) >= 3 + len(faults) - 2
    with reach.reaching(tmp_path):  # the scene is mended: what has no outcome runs again, alone
        evaluate(config_of(checkpoint, tmp_path))
    assert all_numbers(tmp_path) == undisturbed
    assert rows_per_episode(tmp_path) == Counter({**dict.fromkeys(undisturbed, 1), lost.label: 2})


# -- faults of the head ----------------------------------------------------------------------------


def start(checkpoint: Path, folder: Path, backend: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"REACH_SLOW": "0.02", "PYTHONPATH": os.getcwd()}
    return subprocess.Popen(
        [sys.executable, str(PLUGIN / "reach.py"), str(checkpoint), str(folder), backend],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rows_written(folder: Path) -> int:
    file = folder / "eval" / "episodes.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def end_after(head: subprocess.Popen[str], folder: Path, rows: int, how: int) -> None:
    try:
        wait_until(lambda: rows_written(folder) >= rows or head.poll() is not None)
        assert head.poll() is None, head.communicate()[0]
        head.send_signal(how)
        head.communicate(timeout=600)
    finally:
        head.kill()
    assert head.returncode != 0


@pytest.mark.parametrize("backend", ["serial", pytest.param("ray", marks=pytest.mark.slow)])
def test_head_that_is_killed_and_interrupted_goes_on_where_it_was(
    backend: str, checkpoint: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    end_after(start(checkpoint, tmp_path, backend), tmp_path, 4, signal.SIGKILL)
    with (tmp_path / "eval" / "episodes.jsonl").open("ab") as file:
        file.write(b'{"suite":"libero_obj')  # what a kill within a row leaves
    end_after(start(checkpoint, tmp_path, backend), tmp_path, 9, signal.SIGINT)
    done = rows_written(tmp_path)
    assert 9 <= done < len(undisturbed)
    last = start(checkpoint, tmp_path, backend)
    try:
        said, _ = last.communicate(timeout=900)
    finally:
        last.kill()
    assert last.returncode == 0, said
    assert rows_per_episode(tmp_path) == Counter(dict.fromkeys(undisturbed, 1))
    assert all_numbers(tmp_path) == undisturbed


def test_second_head_in_the_same_folder_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    first = start(checkpoint, tmp_path, "serial")
    try:
        wait_until(lambda: rows_written(tmp_path) or first.poll() is not None)
        with (
            reach.reaching(tmp_path / "other"),
            pytest.raises(ConfigError, match="Another process is evaluating into"),
        ):
            evaluate(config_of(checkpoint, tmp_path))
    finally:
        first.kill()
        first.communicate()


FULL_DISK = """
set -u
mount -t tmpfs -o size={small} none {disk}
{run}; echo "first: $?"
mount -o remount,size=16m none {disk}
{run}; echo "second: $?"
cp -r {disk}/eval {kept}/
"""


def test_full_disk_stops_with_what_to_do_and_loses_nothing(
    checkpoint: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(disk)], capture_output=True
        ).returncode
    ):
        pytest.skip("this user may not mount a small disk")
    run = f"{sys.executable} {PLUGIN / 'reach.py'} {checkpoint} {disk} serial"
    script = FULL_DISK.format(small="48k", disk=disk, run=run, kept=tmp_path)
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "first: 1" in done.stdout, done.stderr
    assert "No space left on device. Free space on that disk" in done.stdout
    assert "second: 0" in done.stdout, done.stderr
    assert rows_per_episode(tmp_path) == Counter(dict.fromkeys(undisturbed, 1))
    assert all_numbers(tmp_path) == undisturbed


def test_plan_covers_every_episode(undisturbed: dict[str, Any]) -> None:
    planned = episode_keys(EvalConfig(task_ids=TASKS, episodes=STATES))
    assert set(undisturbed) == {str(key) for key in planned}
