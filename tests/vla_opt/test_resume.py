"""A run that was killed and started again ends with the same bytes as one that was not."""

import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

from tiny_runs import STEPS, result, rows, tiny_run  # noqa: E402

from vla_opt import checkpoint  # noqa: E402
from vla_opt.config import TrainConfig  # noqa: E402
from vla_opt.errors import ConfigError  # noqa: E402
from vla_opt.io import read_jsonl  # noqa: E402
from vla_opt.optim import OptimizerConfig  # noqa: E402
from vla_opt.train import Reporter, train  # noqa: E402


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    output_dir = tmp_path_factory.mktemp("undisturbed") / "train"
    train(tiny_run(dataset, output_dir))
    return output_dir


class StopAt(Reporter):
    """Interrupts the run right after an update, before anything of it is stored."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, step: int, loss: float) -> None:
        if step == self.step:
            raise KeyboardInterrupt


def interrupt(root: Path, output_dir: Path, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(root, output_dir), StopAt(step))


CHILD = """
import sys
from pathlib import Path
from tiny_runs import tiny_run
from vla_opt.train import Reporter, train

class Tell(Reporter):
    def stepped(self, step, loss):
        print(step, flush=True)

train(tiny_run(Path(sys.argv[1]), Path(sys.argv[2])), Tell())
"""


def kill_at(root: Path, output_dir: Path, step: int) -> None:
    """Run in a process of its own, and send it SIGKILL when it has made `step` updates."""
    path = os.pathsep.join([str(PLUGIN), str(Path(checkpoint.__file__).parents[1])])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), str(output_dir)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.strip() == str(step):
            child.send_signal(signal.SIGKILL)
            break
    child.stdout.close()
    assert child.wait(timeout=60) == -signal.SIGKILL


def test_killed_run_ends_with_the_bytes_of_an_undisturbed_one(
    dataset: Path, undisturbed: Path, tmp_path: Path
) -> None:
    step = random.randrange(6, STEPS - 1)
    kill_at(dataset, tmp_path, step)
    left = checkpoint.list_checkpoints(tmp_path / "checkpoints")
    assert left, f"killed after step {step}: there should be a checkpoint of step 5"
    summary = train(tiny_run(dataset, tmp_path))
    assert summary.steps_now < STEPS
    assert result(tmp_path) == result(undisturbed), f"killed after step {step}"


@pytest.mark.parametrize("step", [1, 5, 6, 8, 9, 12, 23, 24])
def test_interruption_at_any_step_changes_nothing(
    dataset: Path, undisturbed: Path, tmp_path: Path, step: int
) -> None:
    interrupt(dataset, tmp_path, step)
    train(tiny_run(dataset, tmp_path))
    assert result(tmp_path) == result(undisturbed)


def test_many_interruptions_change_nothing(
    dataset: Path, undisturbed: Path, tmp_path: Path
) -> None:
    for step in (3, 7, 7, 14, 22):
        interrupt(dataset, tmp_path, step)
    train(tiny_run(dataset, tmp_path))
    assert result(tmp_path) == result(undisturbed)


def test_schedule_free_run_saves_its_average_and_goes_on_from_its_iterate(
    dataset: Path, tmp_path: Path
) -> None:
    def run(output_dir: Path) -> TrainConfig:
        config = tiny_run(dataset, output_dir)
        return dataclasses.replace(config, optimizer=OptimizerConfig(name="sf_normuon", lr=1e-2))

    train(run(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(run(tmp_path / "cut"), StopAt(13))
    train(run(tmp_path / "cut"))
    assert result(tmp_path / "cut") == result(tmp_path / "whole")

    last = tmp_path / "whole" / "checkpoints" / "last"
    average = load_file(last / "pretrained_model" / "model.safetensors")
    iterate = load_file(last / "training_state" / "weights.safetensors")
    apart = {name for name, weight in iterate.items() if not torch.equal(weight, average[name])}
    assert apart == set(iterate)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_that_is_asked_to_end_saves_the_step_it_is_at(
    dataset: Path, undisturbed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    class Ask(Reporter):
        def stepped(self, step: int, loss: float) -> None:
            if step == 8:
                os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="step 8"):
        train(tiny_run(dataset, tmp_path), Ask())
    assert signal.getsignal(number) is handler
    assert train(tiny_run(dataset, tmp_path)).steps_now == STEPS - 8
    assert result(tmp_path) == result(undisturbed)


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "compact"])
def test_vla_adapter_on_two_threads_goes_on_bit_for_bit(
    dataset: Path, tmp_path: Path, backbone: str
) -> None:
    from policies import VLAAdapterConfig

    def run(name: str) -> TrainConfig:
        policy = VLAAdapterConfig(
            device="cpu", backbone=backbone, image_size=32, width=32, num_layers=1
        )
        config = tiny_run(dataset, tmp_path / name, steps=8, save_every=3, num_threads=2)
        return dataclasses.replace(config, policy=policy)

    train(run("undisturbed"))
    with pytest.raises(KeyboardInterrupt):
        train(run("stopped"), StopAt(5))
    assert train(run("stopped")).steps_now == 5
    assert result(tmp_path / "stopped", 8) == result(tmp_path / "undisturbed", 8)


def test_rows_written_after_the_last_checkpoint_are_dropped(dataset: Path, tmp_path: Path) -> None:
    interrupt(dataset, tmp_path, 9)
    (tmp_path / "log.jsonl").open("a").write('{"kind":"train","step":9,"loss":1}\n{"kind":"tr')
    interrupt(dataset, tmp_path, 6)
    assert max(row["step"] for row in rows(tmp_path)) <= 6


def test_damaged_checkpoint_is_passed_over_and_said(
    dataset: Path, undisturbed: Path, tmp_path: Path
) -> None:
    interrupt(dataset, tmp_path, 12)
    weights = tmp_path / "checkpoints/000010/pretrained_model/model.safetensors"
    os.truncate(weights, 100)
    summary = train(tiny_run(dataset, tmp_path))
    assert summary.steps_now == STEPS - 5
    [warning] = read_jsonl(tmp_path / "warnings.jsonl")
    assert "000010" in warning["message"]
    assert "model.safetensors has 100 bytes" in warning["message"]
    assert "Going on from step 5" in warning["message"]
    assert result(tmp_path) == result(undisturbed)


def test_disk_that_fills_stops_the_run_with_the_last_checkpoint_whole(
    dataset: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vla_opt import _session

    calls = 0

    def fail_later(optimizer: torch.optim.Optimizer, folder: Path, state: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            (folder / "optimizer.safetensors").write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(optimizer, folder, state)

    save = _session.save_optimizer
    monkeypatch.setattr(_session, "save_optimizer", fail_later)
    with pytest.raises(OSError, match=r"cannot write checkpoint .*000015.*Free space"):
        train(tiny_run(dataset, tmp_path))
    monkeypatch.undo()
    found = checkpoint.list_checkpoints(tmp_path / "checkpoints")
    assert [path.name for path in found] == ["000005", "000010"]
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"000005", "000010", "last"}
    train(tiny_run(dataset, tmp_path))
    assert result(tmp_path) == result(undisturbed)


def test_finished_run_is_not_touched(dataset: Path, undisturbed: Path) -> None:
    before = result(undisturbed)
    summary = train(tiny_run(dataset, undisturbed))
    assert summary.steps_now == 0
    assert summary.checkpoint.name == f"{STEPS:06d}"
    assert result(undisturbed) == before


def test_another_configuration_is_refused_with_the_difference(
    dataset: Path, undisturbed: Path
) -> None:
    with pytest.raises(ConfigError, match=r"batch_size: 6 in the run, 7 now\n.*seed: 0 in the run"):
        train(tiny_run(dataset, undisturbed, batch_size=7, seed=1))


def test_folder_of_another_run_is_refused_without_resume(dataset: Path, undisturbed: Path) -> None:
    with pytest.raises(ConfigError, match="holds a run already"):
        train(tiny_run(dataset, undisturbed, resume=False))


def test_other_number_of_threads_is_warned_about(dataset: Path, tmp_path: Path) -> None:
    interrupt(dataset, tmp_path, 7)
    train(tiny_run(dataset, tmp_path, num_threads=2))
    [warning] = read_jsonl(tmp_path / "warnings.jsonl")
    assert "num_threads 1 -> 2" in warning["message"]


def test_threads_of_the_run_are_kept_if_none_are_asked_for(dataset: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(dataset, tmp_path, num_threads=2), StopAt(7))
    train(tiny_run(dataset, tmp_path, num_threads=0))
    cursor = json.loads((tmp_path / "checkpoints/000024/training_state/cursor.json").read_text())
    assert cursor["num_threads"] == 2
    assert not (tmp_path / "warnings.jsonl").exists()
    assert torch.get_num_threads() == before


def test_steps_can_be_added(dataset: Path, tmp_path: Path) -> None:
    train(tiny_run(dataset, tmp_path, steps=10))
    summary = train(tiny_run(dataset, tmp_path, steps=13))
    assert (summary.steps, summary.steps_now) == (13, 3)


def test_evaluation_missed_by_an_interruption_is_made_up_for(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vla_opt import train as module

    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "evaluate_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(dataset, tmp_path, eval_every=12))
    monkeypatch.setattr(
        module,
        "evaluate_checkpoint",
        lambda session, _: {"kind": "eval", "step": session.step, "successes": 1, "episodes": 2},
    )
    train(tiny_run(dataset, tmp_path, eval_every=12))
    assert [row["step"] for row in rows(tmp_path, "eval")] == [12, 24]
