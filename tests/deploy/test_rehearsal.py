"""The rehearsal's report says what was seen; the whole rehearsal is a slow test."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from deploy._rehearsal_report import About, EpisodeSeen, Sample, read_summary, write_report
from deploy.limits import MAX_SPEED


def test_command_line_says_whether_elapsed_actions_are_made_up_for(monkeypatch, capsys) -> None:
    from deploy import rehearsal

    told: list[rehearsal.RehearsalConfig] = []
    monkeypatch.setattr(rehearsal, "end_like_ctrl_c", lambda: None)
    monkeypatch.setattr(rehearsal, "rehearse", lambda config: told.append(config) or [])
    assert rehearsal.main([]) == rehearsal.main(["--no-make-up"]) == 0
    assert [config.make_up for config in told] == [True, False]


def episode(*, solved: bool, ending: str, speed: float = 0.5) -> EpisodeSeen:
    quantiles = {"p50": 66.0, "p99": 68.0, "largest": float("nan")}
    report = {
        "ending": ending,
        "reason": "because <of> this",
        "rate_hz": 15.0,
        "tick_gap_ms": quantiles,
        "latency_ms": {"p50": float("nan"), "p99": float("nan"), "largest": float("nan")},
        "held": 2,
    }
    samples = [Sample(time_s=t / 10, speed=(speed,) + (0.0,) * 6) for t in range(5)]
    return EpisodeSeen(
        task="cube_to_bowl",
        seed=3,
        solved=solved,
        report=report,
        samples=tuple(samples),
        real_time_factor=0.9,
        interventions={"acceleration": 4},
    )


def about(policy: str = "p") -> About:
    return About(policy=policy, patience_s=0.1, metadata={"git_commit": "abc"})


def test_the_report_counts_solved_episodes_with_their_interval(tmp_path: Path) -> None:
    seen = [
        episode(solved=True, ending="success"),
        episode(solved=False, ending="reflex"),
        episode(solved=False, ending="max_steps"),
    ]
    page = write_report(tmp_path, seen, about("a <policy>")).read_text()
    assert "1/3 (95 % Wilson interval 0.06 to 0.79)" in page
    assert "a &lt;policy&gt;" in page
    assert "because &lt;of&gt; this" in page
    assert "joint speed" in page
    assert [e.faulty for e in seen] == [False, True, False]
    summary = read_summary(tmp_path)
    assert summary["solved"] == 1
    assert summary["by_task"] == {"cube_to_bowl": "1/3 (95 % Wilson interval 0.06 to 0.79)"}
    assert summary["metadata"] == {"git_commit": "abc"}
    latency = summary["runs"][0]["report"]["latency_ms"]["p50"]
    assert latency is None  # not NaN, which is no JSON
    json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)


def test_the_fastest_joint_is_a_share_of_its_own_limit() -> None:
    assert episode(solved=True, ending="success", speed=1.31).fastest == pytest.approx(
        1.31 / MAX_SPEED[0]
    )


def test_a_film_is_shown_where_there_is_one(tmp_path: Path) -> None:
    from envs._video import encode_mp4

    frames = [np.zeros((32, 64, 3), np.uint8)] * 3
    seen = [episode(solved=True, ending="success")]
    assert "<video" not in write_report(tmp_path, seen, about()).read_text()
    (tmp_path / "cube_to_bowl_3.mp4").write_bytes(encode_mp4(frames, Fraction(5)))
    assert "data:video/mp4" in write_report(tmp_path, seen, about()).read_text()


@pytest.mark.slow
def test_a_task_is_solved_through_server_protocol_and_arm(tmp_path: Path) -> None:
    pytest.importorskip("franka")
    from deploy.rehearsal import RehearsalConfig, rehearse

    (seen,) = rehearse(
        RehearsalConfig(tasks=("cube_to_bowl",), patience_s=0.2, output_dir=tmp_path)
    )
    assert seen.solved
    assert not seen.faulty
    assert seen.report["rate_hz"] == pytest.approx(15.0, abs=0.3)
    assert seen.fastest < 1.0
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "cube_to_bowl_0.mp4").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_a_rehearsal_that_is_asked_to_end_rests_the_arm_and_reports(
    tmp_path: Path, how: signal.Signals
) -> None:
    pytest.importorskip("franka")
    command = [sys.executable, "-m", "deploy.rehearsal", "--tasks", "cube_to_bowl", "--no-film"]
    program = subprocess.Popen(
        [*command, "--patience-s", "0.2", "--output-dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert program.stderr is not None
    ticks = tmp_path / "ticks.jsonl"
    try:
        assert any("cube_to_bowl, scene 0" in line for line in program.stderr)
        while not (ticks.is_file() and ticks.stat().st_size):
            assert program.poll() is None
        program.send_signal(how)
        said, _ = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == 1
    assert json.loads(said)["faults"] == [f"{how.name} was received"]
    assert read_summary(tmp_path)["runs"][0]["report"]["ending"] == "operator"
