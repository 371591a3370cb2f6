"""Success over the updates of a run: from rows of its log to a table and a chart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_opt.evaluation._charts import Series, color_of, line_chart
from vla_opt.evaluation.statistics import wilson
from vla_opt.io import Row, atomic_write_text, read_jsonl

_STYLE = (
    "body{font:14px system-ui;margin:2em auto;max-width:760px}svg{width:100%}"
    "svg text{font-size:9px;fill:#445}.legend span{margin-right:1.5em}"
    ".legend b{display:inline-block;width:1em;height:.6em;margin-right:.4em}"
)


def rate(successes: int, episodes: int) -> dict[str, Any]:
    """Return k, n, and the 95 % Wilson interval as a JSON-able mapping."""
    low, high = wilson(successes, episodes)
    return {"successes": successes, "episodes": episodes, "low": low, "high": high}


def success_table(rows: Sequence[Row]) -> str:
    """Return the table of evaluations and of the episodes learned from, in Markdown.

    Args:
        rows: of log.jsonl; kinds "eval" and "rl" are used.
    """
    evaluations = {row["step"]: row for row in rows if row["kind"] == "eval"}
    updates = {row["step"]: row["success"] for row in rows if row["kind"] == "rl"}
    lines = [
        "| update | evaluation, no exploration | episodes learned from, with exploration |",
        "|---|---|---|",
    ]
    lines += [
        f"| {step} | {_cell(evaluations.get(step))} | {_cell(updates.get(step))} |"
        for step in sorted(evaluations.keys() | updates.keys())
    ]
    return "\n".join([*lines, "", "k/n and the 95 % Wilson interval of each.", ""])


def success_chart(rows: Sequence[Row]) -> str:
    """Return a page with the curve of evaluations, and that of the episodes learned from."""
    kinds = (
        ("evaluation", [(r["step"], r) for r in rows if r["kind"] == "eval"]),
        ("episodes learned from", [(r["step"], r["success"]) for r in rows if r["kind"] == "rl"]),
    )
    series = [s for i, (name, found) in enumerate(kinds) for s in _series(name, found, i)]
    chart = line_chart("success rate with 95 % interval", series, x_label="update")
    return f"<!doctype html><meta charset=utf-8><style>{_STYLE}</style>{chart}"


def write_curve(folder: Path) -> None:
    """Write success.md and success.html of the run in a folder."""
    rows = read_jsonl(folder / "log.jsonl")
    atomic_write_text(folder / "success.md", success_table(rows))
    atomic_write_text(folder / "success.html", success_chart(rows))


def _cell(counts: Row | None) -> str:
    if counts is None:
        return ""
    k, n = counts["successes"], counts["episodes"]
    low, high = wilson(k, n)
    return f"{k}/{n} ({100 * low:.0f}-{100 * high:.0f} %)"


def _series(name: str, found: Sequence[tuple[int, Row]], index: int) -> list[Series]:
    points = [(step, row["successes"], row["episodes"]) for step, row in found if row["episodes"]]
    bounds = [(step, wilson(k, n)) for step, k, n in points]
    shown = [Series(name=name, points=[(s, k / n) for s, k, n in points], color=color_of(index))]
    for side in (0, 1):
        line = [(step, pair[side]) for step, pair in bounds]
        shown.append(Series(name="", points=line, color=color_of(index), faint=True))
    return shown
