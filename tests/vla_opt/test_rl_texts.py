"""What a person is shown of a run: lines, the table and the curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vla_opt.cli import report
from vla_opt.cli.rl import closing, update_line
from vla_opt.io import append_jsonl
from vla_opt.rl.config import RLConfig
from vla_opt.rl.curve import rate, success_chart, success_table, write_curve
from vla_opt.rl.run import RLSummary


def row(step: int, k: int, n: int, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "rl",
        "step": step,
        "success": rate(k, n),
        "groups": {"learned_episodes": n},
        "update": {
            "gradient": {"norm": 0.5, "snr": 1.25},
            "gain": 0.02,
            "after": {"approx_kl": 0.01, "clip_fraction": 0.125},
        },
        **changes,
    }


ROWS = [
    {"kind": "eval", "step": 0, **rate(4, 20)},
    row(1, 9, 32),
    {"kind": "warning", "step": 1, "message": "not part of it"},
    row(2, 16, 32),
    {"kind": "eval", "step": 2, **rate(12, 20)},
]


def test_a_rate_carries_its_interval() -> None:
    found = rate(19, 20)
    assert (found["low"], found["high"]) == pytest.approx((0.7639, 0.9911), abs=1e-4)


def test_table_has_every_update_and_evaluation() -> None:
    lines = success_table(ROWS).splitlines()
    assert lines[2:5] == [
        "| 0 | 4/20 (8-42 %) |  |",
        "| 1 |  | 9/32 (16-45 %) |",
        "| 2 | 12/20 (39-78 %) | 16/32 (34-66 %) |",
    ]


def test_chart_draws_both_curves_with_their_bounds() -> None:
    page = success_chart(ROWS)
    assert page.split('<div class="chart">')[1].count("<polyline") == 6
    assert "episodes learned from" in page


def test_page_draws_the_diagnostics_that_were_logged() -> None:
    page = success_chart(ROWS)
    assert "signal to noise before an update" in page
    assert "share of clipped tokens" in page
    assert "entropy" not in page  # none in these rows


def test_update_without_episodes_leaves_a_gap() -> None:
    assert "<svg" in success_chart([*ROWS, row(3, 0, 0)])


def test_curve_is_written_beside_the_log(tmp_path: Path) -> None:
    for entry in ROWS:
        append_jsonl(tmp_path / "log.jsonl", entry)
    write_curve(tmp_path)
    assert (tmp_path / "success.md").read_text() == success_table(ROWS)


def test_report_of_such_a_run_is_its_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in ROWS:
        append_jsonl(tmp_path / "log.jsonl", entry)
    (tmp_path / "rollouts.jsonl").touch()
    assert report.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "| 2 | 12/20" in printed
    assert f"report: {tmp_path / 'success.html'}" in printed
    assert report.main([str(tmp_path), f"--out={tmp_path / 'other.html'}"]) == 0
    assert (tmp_path / "other.html").read_text() == success_chart(ROWS)


def test_update_in_one_line() -> None:
    line = update_line(row(3, 16, 32))
    assert line.startswith("update 3: 16/32 with exploration (34-66 %), 32 learned from;")
    assert "SNR 1.25, gain 0.02" in line
    assert "clipped 12%" in line
    skipped = row(3, 0, 32)
    del skipped["update"]
    assert "no weight moved" in update_line(skipped)


def test_the_end_names_what_comes_next(tmp_path: Path) -> None:
    summary = RLSummary(
        updates=3, episodes=96, wall_s=61.0, checkpoint=tmp_path / "000003", weights="a"
    )
    text = closing(summary, RLConfig(checkpoint=tmp_path, output_dir=tmp_path))
    assert f"vla-opt eval --checkpoint={tmp_path / '000003'}" in text
