"""Comparisons of runs and cards: every number from the rows, every protocol spelled out."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).parent / "plugin"
sys.path.insert(0, str(PLUGIN))

import reach  # noqa: E402

from vla_opt.cli import main as cli  # noqa: E402
from vla_opt.errors import ConfigError  # noqa: E402
from vla_opt.evaluation.card import UNKNOWN, card  # noqa: E402
from vla_opt.evaluation.config import EvalConfig  # noqa: E402
from vla_opt.evaluation.exports import Grid, latex, markdown, success_csv  # noqa: E402
from vla_opt.evaluation.records import load_records  # noqa: E402
from vla_opt.evaluation.report import write_report  # noqa: E402
from vla_opt.evaluation.run_folder import read_run_folder  # noqa: E402
from vla_opt.evaluation.runner import evaluate  # noqa: E402
from vla_opt.evaluation.side_by_side import (  # noqa: E402
    compare_runs,
    read_runs,
    write_comparison,
)
from vla_opt.evaluation.statistics import holm, mcnemar  # noqa: E402
from vla_opt.evaluation.tables import success_table  # noqa: E402
from vla_opt.io import append_jsonl  # noqa: E402

GAINS = {"strong": (6.0, 4.0), "weak": (3.0, 6.0), "lazy": (0.05, 0.0)}


def evaluated(folder: Path, gains: tuple[float, float], **changes: Any) -> Path:
    """A run of a policy that is better or worse at reaching."""
    options: dict[str, Any] = {
        "suites": ("libero_goal", "libero_object"),
        "task_ids": (0, 1),
        "episodes": 8,
        "image_size": reach.SIZE,
        "backend": "serial",
        "videos": "none",
    }
    checkpoint = reach.write_checkpoint(folder / "policy", gains)
    with reach.reaching(folder / "scratch"):
        evaluate(
            EvalConfig(checkpoint=checkpoint, output_dir=folder / "eval", **{**options, **changes})
        )
    for step in range(1, 4):
        append_jsonl(
            folder / "train" / "log.jsonl",
            {"kind": "train", "step": step, "loss": 1.0 / step, "wall_s": 6.0 * step},
        )
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [evaluated(root / name, gains) for name, gains in GAINS.items()]


def outcomes(run: Path) -> dict[str, bool]:
    return {r.label: r.success for r in load_records(run / "eval" / "episodes.jsonl")}


# -- pairs -----------------------------------------------------------------------------------------


def test_pairs_are_mcnemar_on_shared_episodes_with_holm_over_all_pairs(runs: list[Path]) -> None:
    pairs = compare_runs(read_runs(runs))
    seen = [outcomes(run) for run in runs]
    expected = []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        alone_a = sum(seen[a][k] and not seen[b][k] for k in seen[a])
        alone_b = sum(seen[b][k] and not seen[a][k] for k in seen[a])
        expected.append(mcnemar(alone_a, alone_b))
    assert [pair.paired.p for pair in pairs if pair.paired] == expected
    assert [pair.p_holm for pair in pairs] == holm(expected)
    assert min(expected) < 0.01 < max(expected)


def test_runs_without_a_shared_episode_say_why_and_leave_the_others_alone(
    runs: list[Path], tmp_path: Path
) -> None:
    apart = evaluated(tmp_path / "apart", (6.0, 4.0), suites=("libero_spatial",))
    pairs = compare_runs(read_runs([*runs[:2], apart]))
    assert [pair.paired is None for pair in pairs] == [False, True, True]
    assert "No episode in common" in pairs[1].refused
    assert pairs[0].p_holm == pairs[0].paired.p  # type: ignore[union-attr]


def test_winner_is_named_only_where_the_corrected_p_is_small(
    runs: list[Path], tmp_path: Path
) -> None:
    page = write_comparison(runs, tmp_path / "all.html").read_text()
    for pair in compare_runs(read_runs(runs)):
        names = {f"{a} is better than {b}" for a, b in ((pair.a, pair.b), (pair.b, pair.a))}
        assert any(name in page for name in names) == (pair.p_holm <= 0.05)


# -- what is written -------------------------------------------------------------------------------


def test_comparison_shows_every_run_in_every_format(runs: list[Path], tmp_path: Path) -> None:
    path = write_comparison(runs, tmp_path / "all.html")
    page, text, tex = (path.with_suffix(end).read_text() for end in (".html", ".md", ".tex"))
    for run in runs:
        won = outcomes(run)
        count = f"{sum(won.values())}/{len(won)}"
        for written in (page, text, tex):
            assert run.name in written
            assert count in written
    assert not re.search(r"https?://|//cdn", page)
    assert page.count("<polyline") >= 2 * len(runs)
    header = next(line for line in text.splitlines() if line.startswith("| run |"))
    assert header.index("Object") < header.index("Goal") < header.index("mean of suites")


def test_csv_has_every_count_as_a_number(runs: list[Path], tmp_path: Path) -> None:
    path = write_comparison(runs, tmp_path / "all.html").with_suffix(".csv")
    rows = list(csv.DictReader(path.open()))
    for run in runs:
        own = [row for row in rows if row["run"] == run.name]
        assert [row["row"] for row in own] == ["task"] * 4 + ["suite"] * 2 + ["total"]
        total = own[-1]
        assert int(total["successes"]) == sum(outcomes(run).values())
        assert int(total["scored"]) == 32
        tasks = [row for row in own if row["row"] == "task"]
        assert sum(int(row["successes"]) for row in tasks) == int(total["successes"])


def test_comparison_lies_beside_the_runs_by_default(runs: list[Path]) -> None:
    path = write_comparison(runs)
    assert path == runs[0].parent / "comparison.html"
    for end in (".html", ".md", ".tex", ".csv"):
        path.with_suffix(end).unlink()


def test_runs_of_one_name_are_told_apart_by_their_folders(runs: list[Path], tmp_path: Path) -> None:
    copies = [shutil.copytree(runs[0], tmp_path / side / "run") for side in ("left", "right")]
    assert [run.name for run in read_runs(copies)] == ["left/run", "right/run"]


@pytest.mark.parametrize("count", [0, 1])
def test_one_run_is_no_comparison(count: int, runs: list[Path]) -> None:
    with pytest.raises(ConfigError, match="two different run folders"):
        read_runs(runs[:count] * 2)


def test_command_line_writes_report_or_comparison(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.html"
    assert cli.main(["report", *map(str, runs), f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "Object" in printed
    assert "to paste: x.md, x.tex, x.csv" in printed
    assert cli.main(["report", str(runs[0]), f"--out={tmp_path / 'one.html'}"]) == 0
    assert (tmp_path / "one.tex").exists()
    capsys.readouterr()
    assert cli.main(["report"]) == 2
    assert "RUN [RUN ...]" in capsys.readouterr().err


# -- the card --------------------------------------------------------------------------------------


def test_card_spells_out_the_protocol_of_the_rows(runs: list[Path], tmp_path: Path) -> None:
    found = card(read_run_folder(runs[0]))
    assert found["episodes"] == (
        "libero_object: 2 tasks x 8 initial states x 1 trial, 16 scored; "
        "libero_goal: 2 tasks x 8 initial states x 1 trial, 16 scored"
    )
    assert "states 0 to 7, then 10 settling steps" in found["starts"]
    assert "libero_object 280, libero_goal 300" in found["step limit"]
    assert found["actions"].startswith("4 executed before the policy looks again, at 20 Hz")
    assert "image 32x32 px rotated 180 degrees" in found["images"]
    assert "rendering exact" in found["images"]
    assert found["episode seeds"].startswith("32 distinct")
    metadata = json.loads((runs[0] / "eval" / "metadata.json").read_text())
    assert f"mujoco {metadata['versions']['mujoco']}" in found["simulator"]
    assert metadata["identity"]["checkpoint_hash"] in found["checkpoint"]
    written = write_report(runs[0], tmp_path / "one.html").with_suffix(".md").read_text()
    for name, value in found.items():
        assert f"| {name} | {value} |" in written


def test_card_of_a_bare_folder_invents_nothing(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    shutil.copy(runs[0] / "eval" / "episodes.jsonl", tmp_path / "eval")
    found = card(read_run_folder(tmp_path))
    for name in ("training", "actions", "proprioception", "simulator", "code", "machine"):
        assert found[name] == UNKNOWN


def test_differences_of_protocol_stand_above_the_rates(runs: list[Path], tmp_path: Path) -> None:
    other = evaluated(tmp_path / "other", (6.0, 4.0), execute_steps=8)
    path = write_comparison([runs[0], other], tmp_path / "all.html")
    page = path.read_text()
    assert "The runs differ in their protocol (actions)" in page
    assert "| actions (differs) |" in path.with_suffix(".md").read_text()
    same = write_comparison(runs[:2], tmp_path / "same.html").read_text()
    assert "differ in their protocol" not in same
    assert "the same in all 9 lines of the protocol" in same


# -- formats ---------------------------------------------------------------------------------------

ODD = Grid(
    title="50 % & more",
    head=("a_b", "c", "d"),
    rows=(("x|y", "<b>", "100 %"), ("{z}", "$1^2~", "#1 \\")),
)


def test_latex_has_no_unescaped_character_and_as_many_columns_as_the_table() -> None:
    text = latex([ODD])
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 3
    for line in lines:
        assert len(re.findall(r"(?<!\\)&", line)) == 2
    assert r"a\_b & c & d \\" in text
    assert r"x|y & \textless{}b\textgreater{} & 100 \% \\" in text
    assert r"\{z\} & \$1\textasciicircum{}2\textasciitilde{} & \#1 \textbackslash{} \\" in text
    assert r"50 \% \& more" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2


def test_markdown_cells_cannot_break_the_table() -> None:
    lines = [line for line in markdown([ODD]).splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {4}
    assert "&lt;b>" in lines[2]


def test_grid_with_a_row_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="3 columns"):
        Grid(title="t", head=("a", "b", "c"), rows=(("1", "2"),))


def test_instructions_with_commas_survive_in_csv(runs: list[Path]) -> None:
    records = load_records(runs[0] / "eval" / "episodes.jsonl")
    text = success_csv([("a,b", success_table(records))])
    assert {row["run"] for row in csv.DictReader(io.StringIO(text))} == {"a,b"}
