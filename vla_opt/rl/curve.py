"""Success over the updates of a run: from rows of its log to a table and a chart."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_opt.evaluation._charts import Series, color_of, line_chart
from vla_opt.evaluation.statistics import wilson
from vla_opt.io import Row, atomic_write_text, read_jsonl
from vla_opt.rl._files import ROLLOUTS

_STYLE = (
    "body{font:14px system-ui;margin:2em auto;max-width:760px}svg{width:100%}"
    "svg text{font-size:9px;fill:#445}.legend span{margin-right:1.5em}"
    ".legend b{display:inline-block;width:1em;height:.6em;margin-right:.4em}"
)


PANELS = {
    "gain of the objective on the episodes learned from": [("", "rl/update/gain")],
    "gradient: signal to noise before an update": [("", "rl/update/gradient/snr")],
    "gradient: norm before clipping": [("", "rl/update/gradient/norm")],
    "share of clipped tokens": [
        ("while learning", "rl/update/clip_fraction"),
        ("after the update", "rl/update/after/clip_fraction"),
    ],
    "distance from the weights that acted, nats per token": [("", "rl/update/after/approx_kl")],
    "distance from the start, nats per token": [("", "rl/update/kl_reference")],
    "entropy of a decision, nats": [("", "rl/update/entropy")],
    "variance over heads of the norm of the query weights": [
        ("", "rl/update/heads/head_norm_variance")
    ],
    "variance over heads of the norm of their update": [
        ("", "rl/update/heads/head_update_variance")
    ],
}
"""What the papers on reinforcement learning of large models ask to be watched."""


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
    """Return a page: the curves of evaluations and of the episodes learned from; diagnostics."""
    kinds = (
        ("evaluation", [(r["step"], r) for r in rows if r["kind"] == "eval"]),
        ("episodes learned from", [(r["step"], r["success"]) for r in rows if r["kind"] == "rl"]),
    )
    series = [s for i, (name, found) in enumerate(kinds) for s in _series(name, found, i)]
    chart = line_chart("success rate with 95 % interval", series, x_label="update")
    drawn = "".join([chart, *diagnostic_charts(rows, PANELS)])
    return f"<!doctype html><meta charset=utf-8><style>{_STYLE}</style>{drawn}"


def diagnostic_charts(
    rows: Sequence[Row], panels: Mapping[str, Sequence[tuple[str, str]]]
) -> list[str]:
    """Return a chart per panel that has a value.

    Args:
        rows: of a log.
        panels: title -> lines, each a legend and the place of its number, such as
            "rl/update/entropy": the kind of the row, then keys.
    """
    found = []
    for title, lines in panels.items():
        series = [
            Series(name=legend, points=_points(rows, place), color=color_of(index))
            for index, (legend, place) in enumerate(lines)
        ]
        if any(line.points for line in series):
            found.append(line_chart(title, series, x_label="update"))
    return found


def is_rl_run(folder: Path) -> bool:
    """Whether a folder holds a run of `vla-opt rl` that has played episodes."""
    return (folder / ROLLOUTS).exists()


def write_curve(folder: Path, page: Path | None = None) -> Path:
    """Write the page of the run in a folder, with a table in Markdown beside it.

    Args:
        folder: of the run.
        page: the HTML file; success.html in the folder if not given.

    Returns:
        the page.
    """
    rows, page = read_jsonl(folder / "log.jsonl"), page or folder / "success.html"
    atomic_write_text(page.with_suffix(".md"), success_table(rows))
    atomic_write_text(page, success_chart(rows))
    return page


def _points(rows: Sequence[Row], place: str) -> list[tuple[float, float]]:
    kind, *keys = place.split("/")
    found = []
    for row in rows:
        value: Any = row if row["kind"] == kind else None
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            found.append((float(row["step"]), float(value)))
    return found


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
