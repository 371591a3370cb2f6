"""Comparisons: the same start for every optimizer, honest tables, nothing done twice."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

from tiny_runs import result, rows, tiny_run  # noqa: E402

from vla_opt import compare as module  # noqa: E402
from vla_opt._comparison import Comparison, RunResult  # noqa: E402
from vla_opt._comparison_page import comparison_page  # noqa: E402
from vla_opt._jobs import JobError  # noqa: E402
from vla_opt._parallel import train_in_processes  # noqa: E402
from vla_opt.compare import CompareConfig, CompareError, Listener, compare  # noqa: E402
from vla_opt.evaluation.config import EvalConfig  # noqa: E402
from vla_opt.evaluation.records import EpisodeRecord  # noqa: E402
from vla_opt.evaluation.statistics import mcnemar  # noqa: E402
from vla_opt.train import Reporter  # noqa: E402


def records(
    outcomes: str, *, suite: str = "libero_object", **changes: Any
) -> tuple[EpisodeRecord, ...]:
    """One episode per letter: s(uccess), f(ailure), e(rror)."""
    names: dict[str, Any] = {"s": "success", "f": "failure", "e": "error"}
    return tuple(
        EpisodeRecord(
            suite=suite,
            task_id=0,
            init_state=i,
            seed=i,
            outcome=names[letter],
            success=letter == "s",
            error="broken" if letter == "e" else None,
            steps=1,
            wall_s=1.0,
            cpu_s=1.0,
            **changes,
        )
        for i, letter in enumerate(outcomes)
    )


def runs(**outcomes: list[str]) -> list[RunResult]:
    return [
        RunResult(arm=arm, seed=seed, records=records(letters), loss=0.5, train_s=60.0)
        for arm, per_seed in outcomes.items()
        for seed, letters in enumerate(per_seed)
    ]


def test_table_counts_successes_over_seeds_and_corrects_p() -> None:
    table = Comparison.of(
        runs(adamw=["ffffffff", "fffffffs"], muon=["ffffssss", "ffffssss"], pion=["ssssssss"] * 2)
    )
    assert [arm.rate.split()[0] for arm in table.arms] == ["1/16", "8/16", "16/16"]
    pairs = {(pair.a, pair.b): pair for pair in table.pairs}
    pion = pairs["adamw", "pion"]
    assert (pion.pooled.only_a, pion.pooled.only_b) == (0, 15)
    assert pion.pooled.p == mcnemar(0, 15)
    assert pion.p_holm == pytest.approx(3 * mcnemar(0, 15))
    assert pairs["muon", "pion"].p_holm == pytest.approx(2 * mcnemar(0, 8))
    assert pairs["adamw", "muon"].p_holm == pytest.approx(mcnemar(0, 7))
    text = table.text()
    assert "16/16 (100.0 %, 95 % CI" in text
    assert "pion is better than adamw" in text
    assert "0: 0/8, 1: 1/8" in text
    assert json.loads(json.dumps(table.to_dict()))["arms"][2]["successes"] == 16
    assert "| pion | 16/16" in table.markdown()


def test_several_suites_are_shown_one_by_one(tmp_path: Path) -> None:
    one, other = records("ssff"), records("sff", suite="libero_spatial")
    mixed = Comparison.of([RunResult(arm="pion", seed=n, records=one + other) for n in (0, 1)])
    assert mixed.suites[0] == ("optimizer", "libero_object", "libero_spatial")
    assert mixed.suites[1][0] == "pion"
    assert [cell.split()[0] for cell in mixed.suites[1][1:]] == ["4/8", "2/6"]
    assert "| optimizer | libero_object | libero_spatial |" in mixed.markdown()
    assert "libero_spatial" in mixed.text()
    (arm,) = mixed.to_dict()["arms"]
    assert arm["suites"]["libero_spatial"] == {"successes": 2, "scored": 6}
    assert 'id="suites-table"' in comparison_page(mixed, "mixed", tmp_path)
    single = Comparison.of(runs(a=["sf"]))
    assert single.suites == []
    assert "suites-table" not in comparison_page(single, "single", tmp_path)


def test_no_winner_is_named_where_the_corrected_p_is_large() -> None:
    table = Comparison.of(runs(a=["ffffffss"], b=["ssssssss"], c=["ffffffss"]))
    pair = table.pairs[0]
    assert pair.pooled.p == mcnemar(0, 6) < 0.05 < pair.p_holm
    assert "better" not in table.text()
    assert "no difference shown between a and b" in table.text()


def test_errors_and_diverged_runs_are_told_and_count_neither_way() -> None:
    results = [*runs(a=["sse"]), RunResult(arm="b", seed=0, diverged="The loss is nan at step 3")]
    table = Comparison.of(results)
    assert table.arms[0].scored == 2
    assert table.pairs == ()
    assert not table.complete
    assert "b, seed 0 diverged: The loss is nan at step 3" in table.text()
    assert "1 episodes could not be run" in table.text()
    assert "nothing measured" in table.text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizers": ("pion", "adamv")}, "adamw"),
        ({"options": {"poin": {"lr": 1}}}, "pion"),
        ({"options": {"pion": {"promotion_step": 2}}}, "promotion_steps"),
        ({"seeds": (1, 1)}, "none twice"),
        ({"seeds": ()}, "at least one"),
        ({"parallel": 0}, "at least 1"),
    ],
)
def test_bad_configuration_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompareConfig(**changes)


def test_arm_may_be_an_optimizer_under_another_name() -> None:
    config = CompareConfig(
        optimizers=("pion", "bold"), options={"bold": {"name": "pion", "promotion_steps": 3}}
    )
    arms = config.arms()
    assert arms["bold"] == dataclasses.replace(arms["pion"], promotion_steps=3)


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replaces the simulator; the folders that were evaluated."""
    seen: list[Path] = []

    def evaluate(job: EvalConfig, progress: object) -> Any:
        assert job.checkpoint is not None
        assert (job.checkpoint / "manifest.json").is_file()
        assert job.output_dir is not None
        seen.append(job.output_dir)
        letters = "ssss" if "pion" in str(job.output_dir) else "fsff"
        return type("Summary", (), {"records": records(letters)})

    monkeypatch.setattr(module, "evaluate", evaluate)
    return seen


def small(root: Path, folder: Path, **changes: Any) -> CompareConfig:
    common = tiny_run(root, Path("unused"), steps=6, eval=EvalConfig(backend="serial"))
    defaults: dict[str, Any] = {"optimizers": ("adamw", "pion"), "seeds": (0, 1)}
    return CompareConfig(train=common, output_dir=folder, **{**defaults, **changes})


class Count(Listener):
    """Counts trainings; the one numbered `stop_at` is interrupted at its third step."""

    def __init__(self, stop_at: int = -1) -> None:
        self.trained: list[tuple[str, int]] = []
        self._stop_at = stop_at

    @contextmanager
    def training(self, arm: str, seed: int) -> Iterator[Reporter | None]:
        self.trained.append((arm, seed))
        stop = len(self.trained) - 1 == self._stop_at

        class Stop(Reporter):
            def stepped(self, step: int, loss: float) -> None:
                if stop and step == 3:
                    raise KeyboardInterrupt

        yield Stop()


def test_runs_of_a_seed_start_alike_and_differ_in_the_optimizer_alone(
    dataset: Path, tmp_path: Path, evaluations: list[Path]
) -> None:
    table = compare(small(dataset, tmp_path))
    assert [arm.successes for arm in table.arms] == [2, 8]
    for seed in (0, 1):
        adamw, pion = (
            json.loads((tmp_path / f"{arm}/seed{seed}/train/metadata.json").read_text())
            for arm in ("adamw", "pion")
        )
        assert adamw["initial_weights"] == pion["initial_weights"]
        assert adamw["data"] == pion["data"]
        assert adamw["routing"] != pion["routing"]
    first = [rows(tmp_path / f"{arm}/seed0/train", "train")[0]["loss"] for arm in ("adamw", "pion")]
    assert first[0] != first[1]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("adamw", "pion", "config.yaml", "metadata.json"),
        *("curves.csv", "result.html", "result.json", "result.md", "result.txt"),
    }
    assert len(evaluations) == 4


def test_stopped_comparison_goes_on_where_it_was(
    dataset: Path, tmp_path: Path, evaluations: list[Path]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        compare(small(dataset, tmp_path), Count(stop_at=2))
    assert not (tmp_path / "result.json").exists()
    again = Count()
    compare(small(dataset, tmp_path), again)
    assert again.trained == [("adamw", 1), ("pion", 1)]
    third = Count()
    compare(small(dataset, tmp_path), third)
    assert third.trained == []


def test_diverged_training_is_a_result_and_the_others_go_on(
    dataset: Path, tmp_path: Path, evaluations: list[Path]
) -> None:
    config = small(dataset, tmp_path, options={"adamw": {"lr": 1e38}}, seeds=(0,))
    table = compare(config)
    assert "at step" in table.arms[0].runs[0].diverged
    assert table.arms[1].successes == 4
    assert evaluations == [tmp_path / "pion/seed0/eval"]


def test_runs_that_started_differently_are_refused(
    dataset: Path, tmp_path: Path, evaluations: list[Path]
) -> None:
    config = small(dataset, tmp_path, seeds=(0,))
    compare(config)
    file = tmp_path / "pion/seed0/train/metadata.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "initial_weights": "other"}))
    with pytest.raises(CompareError, match="Seed 0: adamw and pion did not start with the same"):
        compare(config)


# ------------------------------------------------------------------ trainings in other processes


@pytest.mark.slow
def test_parallel_trainings_give_the_bytes_of_one_after_another(
    dataset: Path, tmp_path: Path, evaluations: list[Path]
) -> None:
    from vla_opt.train import train

    compare(small(dataset, tmp_path / "many", parallel=2, seeds=(0,)))
    for arm, optimizer in small(dataset, tmp_path).arms().items():
        alone = tmp_path / "alone" / arm
        train(tiny_run(dataset, alone, steps=6, optimizer=optimizer))
        assert result(tmp_path / "many" / arm / "seed0/train", 6) == result(alone, 6)


def test_failed_training_process_is_an_error_with_what_it_said(
    dataset: Path, tmp_path: Path
) -> None:
    broken = tiny_run(dataset, tmp_path / "run/train", data={"frame_stride": 50})
    with pytest.raises(JobError, match=r"(?s)ended with code 1; .*samples do not fill"):
        train_in_processes([broken], parallel=2, progress=lambda done, total: None)


PARENT = """
import sys
from pathlib import Path
from tiny_runs import tiny_run
from vla_opt._parallel import train_in_processes

folder = Path(sys.argv[2])
train_in_processes(
    [tiny_run(Path(sys.argv[1]), folder / "train", steps=10**6)], parallel=1,
    progress=lambda done, total: print(done, flush=True),
)
"""


@pytest.mark.slow
def test_training_process_ends_with_its_parent(dataset: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(PLUGIN), str(Path(module.__file__).parents[1])])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(dataset), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert parent.stdout is not None
    for line in parent.stdout:
        if int(line) > 0:
            break
    parent.send_signal(signal.SIGKILL)
    parent.stdout.close()
    parent.wait()
    wait_until(lambda: unlocked(tmp_path / "train"), seconds=20)


def unlocked(folder: Path) -> bool:
    from vla_opt._resume import only_writer
    from vla_opt.errors import ConfigError

    try:
        with only_writer(folder):
            return True
    except ConfigError:
        return False


def wait_until(condition: Callable[[], bool], *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


def test_second_process_in_a_run_folder_is_refused(dataset: Path, tmp_path: Path) -> None:
    from vla_opt._resume import only_writer
    from vla_opt.errors import ConfigError
    from vla_opt.train import train

    with (
        only_writer(tmp_path),
        pytest.raises(ConfigError, match="Another process is training in"),
    ):
        train(tiny_run(dataset, tmp_path))
