"""The quickstart: where things go, what is told, and one real run from an empty folder."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

import vla_opt.quickstart as quickstart
from vla_opt.cli._config import parse
from vla_opt.cli.quickstart import next_commands
from vla_opt.config import TrainConfig
from vla_opt.demos import DemosConfig
from vla_opt.doctor import Check
from vla_opt.errors import QuickstartError
from vla_opt.evaluation.config import EvalConfig
from vla_opt.quickstart import Listener, QuickstartConfig, run_quickstart, stage_seconds


def test_run_dir_moves_everything(tmp_path: Path) -> None:
    config = parse(QuickstartConfig, [f"--run_dir={tmp_path}"]).resolved()
    assert config.demos.root == config.train.data.root == tmp_path / "demos"
    assert config.train.data.cache == tmp_path / "cache"
    assert config.train.output_dir == config.eval.checkpoint == tmp_path / "train"
    assert config.eval.output_dir == tmp_path / "eval"


def test_a_path_that_was_chosen_is_kept(tmp_path: Path) -> None:
    words = [f"--run_dir={tmp_path}", "--demos.root=/shared/demos", "--eval.output_dir=/e"]
    config = parse(QuickstartConfig, words).resolved()
    assert config.demos.root == config.train.data.root == Path("/shared/demos")
    assert config.eval.output_dir == Path("/e")
    assert config.train.output_dir == tmp_path / "train"


def test_a_path_that_was_chosen_is_kept_if_it_is_the_default_elsewhere(tmp_path: Path) -> None:
    words = [f"--run_dir={tmp_path}", f"--demos.root={DemosConfig().root}"]
    words += [f"--train.output_dir={TrainConfig().output_dir}"]
    config = parse(QuickstartConfig, words).resolved()
    assert config.demos.root == config.train.data.root == DemosConfig().root
    assert config.train.output_dir == config.eval.checkpoint == TrainConfig().output_dir


@pytest.mark.parametrize("tasks", [[], ["--eval.task_ids=[0,3]"]])
def test_what_to_run_next_can_be_run_as_it_stands(tmp_path: Path, tasks: list[str]) -> None:
    words = [f"--run_dir={tmp_path}", "--eval.suites=[libero_spatial]", *tasks]
    config = parse(QuickstartConfig, words).resolved()
    commands = next_commands(config, tmp_path / "train/checkpoints/last")
    [evaluation] = [shlex.split(line) for line in commands if line.startswith("vla-opt eval ")]
    parsed = parse(EvalConfig, evaluation[2:])
    assert parsed.execute_steps == config.eval.execute_steps
    assert parsed.suites == (("libero_spatial",) if tasks else ("libero_plus/libero_spatial",))
    assert ("make libero-object" in " ".join(commands)) == bool(tasks)


def test_what_has_been_run_is_not_proposed_again(tmp_path: Path) -> None:
    words = ["--eval.suites=[libero_goal]", "--eval.task_ids=[0,4]", "--eval.episodes=50"]
    config = parse(QuickstartConfig, [f"--run_dir={tmp_path}", *words]).resolved()
    lines = next_commands(config, tmp_path / "train/checkpoints/last")
    [evaluation] = [shlex.split(line) for line in lines if line.startswith("vla-opt eval ")]
    parsed = parse(EvalConfig, evaluation[2:])
    assert parsed.suites == ("libero_plus/libero_goal",)
    assert parsed.variants.base_tasks == (0, 4)


def test_machine_that_is_not_ready_stops_before_anything_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Check(name="rendering", status="failure", found="no EGL", remedy="apt-get ...")
    monkeypatch.setattr(quickstart, "examine", lambda folder: iter([bad]))
    monkeypatch.setattr(quickstart, "generate", lambda *a: pytest.fail("went on"))
    shown: list[Check] = []

    class Tell(Listener):
        def checked(self, check: Check) -> None:
            shown.append(check)

    with pytest.raises(QuickstartError, match=r"not ready: rendering"):
        run_quickstart(QuickstartConfig(run_dir=tmp_path), Tell())
    assert shown == [bad]


def test_an_interrupted_stage_has_its_time_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "generate", interrupted)
    config = QuickstartConfig(run_dir=tmp_path, check_machine=False)
    (tmp_path / quickstart.TIMES).write_text(json.dumps({"seconds": {"demonstrations": 100.0}}))
    with pytest.raises(KeyboardInterrupt):
        run_quickstart(config)
    assert 100.0 <= stage_seconds(tmp_path)["demonstrations"] < 110.0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seconds": {"a": "x"}}'])
def test_a_damaged_record_of_times_is_no_obstacle(tmp_path: Path, text: str) -> None:
    (tmp_path / quickstart.TIMES).write_text(text)
    assert stage_seconds(tmp_path) == {}


@pytest.mark.slow
@pytest.mark.sim
def test_from_an_empty_folder_to_a_report_and_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A few steps teach nothing; every stage runs for real, and none runs twice."""
    import vla_opt.cli.main as cli

    words = [
        f"--run_dir={tmp_path}",
        "--check_machine=false",
        *("--demos.task_ids=0", "--demos.per_task=2", "--demos.backend=serial"),
        *("--train.steps=4", "--train.batch_size=4", "--train.scheduler.warmup_steps=1"),
        *("--eval.task_ids=0", "--eval.episodes=1", "--eval.backend=serial"),
    ]
    assert cli.main(["quickstart", *words]) == 0
    text = capsys.readouterr().out
    assert "/1 (" in text.split("Success of vla_adapter")[1]
    assert f"Report:  {tmp_path / 'report.html'}" in text
    assert (tmp_path / "report.html").stat().st_size > 10_000
    row = (tmp_path / "eval" / "episodes.jsonl").read_bytes()
    data = (tmp_path / "demos" / "meta" / "info.json").stat().st_mtime_ns
    log = (tmp_path / "train" / "log.jsonl").read_bytes()

    assert cli.main(["quickstart", *words]) == 0
    assert (tmp_path / "eval" / "episodes.jsonl").read_bytes() == row
    assert (tmp_path / "demos" / "meta" / "info.json").stat().st_mtime_ns == data
    assert (tmp_path / "train" / "log.jsonl").read_bytes() == log
