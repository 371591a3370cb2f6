"""Training under Ray: the same loop and weights, errors that arrive, and runs that change size."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

from tiny_runs import rows, tiny_run  # noqa: E402

from vla_opt._reporting import Reporter  # noqa: E402
from vla_opt.cli._ray_launch import split_launcher  # noqa: E402
from vla_opt.config import TrainConfig  # noqa: E402
from vla_opt.errors import ConfigError, UnknownNameError  # noqa: E402
from vla_opt.io import Row, append_jsonl  # noqa: E402
from vla_opt.ray_training import (  # noqa: E402
    RayLaunch,
    RayTrainingError,
    _tell,
    train_with_ray,
    work,
)
from vla_opt.schedules import SchedulerConfig  # noqa: E402
from vla_opt.train import train  # noqa: E402


def quiet_run(dataset: Path, folder: Path, **changes: object) -> TrainConfig:
    """A run without noise, so that its weights do not depend on who draws it."""
    return tiny_run(
        dataset,
        folder,
        policy={"dropout": 0.0, "noise": 0.0},
        scheduler=SchedulerConfig(name="constant"),
        save_every=2,
        **changes,
    )


def weights(run: Path, step: int) -> dict[str, Tensor]:
    found = load_file(run / f"checkpoints/{step:06d}/pretrained_model/model.safetensors")
    return {name: value for name, value in found.items() if name != "seen"}


def assert_same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        # Steps move a weight by up to 1e-3, AdamW's those with hardly any gradient too.
        torch.testing.assert_close(value, b[name], rtol=1e-4, atol=2e-4, msg=name)


@pytest.mark.slow
def test_two_ray_workers_train_as_one_process_and_it_goes_on_alone(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PLUGIN), *sys.path]))
    train(quiet_run(dataset, tmp_path / "one", steps=4, batch_size=12))
    told: list[Row] = []

    class Listener(Reporter):
        def logged(self, row: Row) -> None:
            told.append(row)

    # 2 workers x 3 samples x 2 passes = 12 samples per update
    halves = {"batch_size": 3, "gradient_accumulation": 2}
    shared = tmp_path / "two"
    summary = train_with_ray(
        quiet_run(dataset, shared, steps=2, **halves), RayLaunch(workers=2), Listener()
    )
    assert summary.steps == summary.steps_now == 2
    assert summary.checkpoint == shared / "checkpoints/000002"
    assert {row["step"] for row in told if row["kind"] == "train"} == {2}
    assert json.loads((shared / "metadata.json").read_text())["processes"] == 2
    assert not (shared / ".ray").exists()
    assert_same_weights(weights(shared, 2), weights(tmp_path / "one", 2))

    # one process x 4 samples x 3 passes
    train(quiet_run(dataset, shared, steps=4, batch_size=4, gradient_accumulation=3))
    assert_same_weights(weights(shared, 4), weights(tmp_path / "one", 4))
    assert [row["step"] for row in rows(shared, "train")] == [2, 3, 4]


def test_a_run_goes_on_with_its_update_cut_in_other_parts(dataset: Path, tmp_path: Path) -> None:
    train(quiet_run(dataset, tmp_path / "one", steps=4, batch_size=12))
    parts = tmp_path / "parts"
    train(quiet_run(dataset, parts, steps=2, batch_size=3, gradient_accumulation=4))
    train(quiet_run(dataset, parts, steps=4, batch_size=6, gradient_accumulation=2))
    assert_same_weights(weights(parts, 4), weights(tmp_path / "one", 4))
    with pytest.raises(ConfigError, match="batch_size: 6 in the run, 5 now"):
        train(quiet_run(dataset, parts, steps=6, batch_size=5, gradient_accumulation=2))


def test_a_worker_leaves_its_summary(dataset: Path, tmp_path: Path) -> None:
    config = quiet_run(dataset, tmp_path / "run", steps=2)
    work({"config": config, "exchange": str(tmp_path)})
    left = json.loads((tmp_path / "summary.json").read_text())
    assert left["steps"] == 2
    assert left["checkpoint"] == str(tmp_path / "run/checkpoints/000002")


def test_a_worker_leaves_its_error_and_is_not_started_in_vain(
    dataset: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(quiet_run(dataset, folder, steps=2))
    other = quiet_run(dataset, folder, steps=3, seed=7)
    with pytest.raises(RayTrainingError, match=r"ConfigError: (.|\n)*seed: 0 in the run, 7 now"):
        work({"config": other, "exchange": str(tmp_path)})
    assert json.loads((tmp_path / "error.json").read_text())["kind"] == "ConfigError"
    with pytest.raises(RayTrainingError, match="ended by an earlier error"):
        work({"config": quiet_run(dataset, folder, steps=3), "exchange": str(tmp_path)})


def test_rows_are_told_once_as_they_come(tmp_path: Path) -> None:
    log, seen = tmp_path / "log.jsonl", list[tuple[int, float]]()

    class Listener(Reporter):
        def stepped(self, step: int, loss: float) -> None:
            seen.append((step, loss))

    assert _tell(log, -1, Listener()) == -1
    append_jsonl(log, {"kind": "train", "step": 3, "loss": 0.5})
    append_jsonl(log, {"kind": "spectra", "step": 3})
    told = _tell(log, -1, Listener())
    append_jsonl(log, {"kind": "train", "step": 6, "loss": 0.25})
    assert _tell(log, told, Listener()) == 6
    assert seen == [(3, 0.5), (6, 0.25)]


def test_workers_are_not_started_again_for_a_run_that_may_not_go_on(
    dataset: Path, tmp_path: Path
) -> None:
    config = quiet_run(dataset, tmp_path / "run", resume=False)
    with pytest.raises(ConfigError, match="restarts=2 with resume=false"):
        train_with_ray(config, RayLaunch())
    assert not (tmp_path / "run").exists()


# The words of the command ------------------------------------------------------------------------


def test_launcher_words_are_taken_out_of_the_command() -> None:
    words = ["--steps=5", "--launcher", "ray", "--workers=4", "--cpus_per_worker=2", "--seed", "1"]
    rest, launch = split_launcher(words)
    assert rest == ["--steps=5", "--seed", "1"]
    assert launch == RayLaunch(workers=4, cpus=2, restarts=2)
    assert split_launcher(["--steps=5"]) == (["--steps=5"], None)
    assert split_launcher(["--launcher=here"]) == ([], None)


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["--launcher=rya"], UnknownNameError, "Did you mean 'ray'"),
        (["--workers=2"], ConfigError, "belongs to --launcher=ray"),
        (["--launcher=ray", "--workers=0"], ConfigError, "workers=0"),
        (["--launcher=ray", "--workers=two"], ConfigError, "two"),
        (["--launcher=ray", "--restarts=-1"], ConfigError, "restarts=-1"),
        (["--launcher"], ConfigError, "expected a value"),
    ],
)
def test_wrong_launcher_words_say_what_is_expected(
    words: list[str], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        split_launcher(words)
