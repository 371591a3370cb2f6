"""The report's sections about training: curves, spectra of the optimizer's groups, warnings."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from vla_opt.evaluation._charts import Point, Series, color_of, line_chart, number, smooth
from vla_opt.evaluation._html import Section, esc, facts, paragraph, table
from vla_opt.evaluation.run_folder import Row, RunFolder
from vla_opt.evaluation.statistics import format_rate, wilson

_SPECTRA = (
    # (field, title, log scale)
    ("stable_rank", "Stable rank of the momentum", False),
    ("top_energy", "Share of energy in the top direction", False),
    ("directions_passed", "Directions passed per matrix", False),
    ("update_to_weight", "Update RMS / weight RMS", True),
)


def training_sections(run: RunFolder) -> list[Section]:
    """Return the sections on training curves, spectra and warnings."""
    return [_curves(run), _spectra(run), _warnings(run)]


def _curves(run: RunFolder) -> Section:
    rows = run.rows("train")
    if not rows:
        body = paragraph("No training log in this run.", "soft")
        return Section(anchor="training", title="Training", body=body)
    loss = _points(rows, "loss")
    window = _window(loss)
    charts = [
        line_chart(
            "Training loss",
            [
                Series(name="logged", points=loss, faint=window > 1),
                Series(name=f"mean of {window} logged values", points=smooth(loss, window)),
            ][: 2 if window > 1 else 1],
            log_y=_spans_decades(loss),
        ),
        line_chart("Learning rate", [Series(name="", points=_points(rows, "lr"))]),
        line_chart(
            "Gradient norm",
            [Series(name="", points=_points(rows, "grad_norm"), color=color_of(1))],
            log_y=_spans_decades(_points(rows, "grad_norm")),
        ),
    ]
    evaluations = _evaluations(run.rows("eval"))
    if evaluations:
        charts.append(evaluations)
    body = f'<div class="charts">{"".join(charts)}</div>{facts(_training_facts(run, rows))}'
    return Section(anchor="training", title="Training", body=body)


def _training_facts(run: RunFolder, rows: Sequence[Row]) -> Iterable[tuple[str, str]]:
    last = rows[-1]
    planned = f" of {run.planned_steps}" if run.planned_steps else ""
    yield "Steps", f"{last['step']}{planned}"
    loss = _points(rows, "loss")
    if loss:
        window = _window(loss)
        averaged = f" (mean of {window} logged values)" if window > 1 else ""
        yield "Last loss", f"{number(smooth(loss, window)[-1][1])}{averaged}"
    for field, name, scale, unit in (
        ("samples_per_s", "Throughput", 1.0, "samples/s"),
        ("step_s", "Time per step", 1e3, "ms"),
        ("optimizer_s", "of which optimizer", 1e3, "ms"),
        ("data_s", "of which data", 1e3, "ms"),
    ):
        values = [y for _, y in _points(rows, field)]
        if values:
            yield name, f"{number(scale * sum(values) / len(values))} {unit}"
    if "wall_s" in last:
        yield "Wall time", clock(float(last["wall_s"]))


def _evaluations(rows: Sequence[Row]) -> str:
    """Success during training with its interval, for rows that carry counts."""
    counts = [
        (float(row["step"]), int(row["successes"]), int(row["episodes"]))
        for row in rows
        if "successes" in row and row.get("episodes")
    ]
    if not counts:
        return ""
    bounds = [wilson(k, n) for _, k, n in counts]
    steps = [step for step, _, _ in counts]
    last = counts[-1]
    series = [
        Series(
            name=f"success, last {format_rate(last[1], last[2])}",
            points=[(step, k / n) for step, k, n in counts],
            color=color_of(2),
        ),
        Series(
            name="95 % interval",
            points=[(s, low) for s, (low, _) in zip(steps, bounds, strict=True)],
            color=color_of(2),
            faint=True,
        ),
        Series(
            name="",
            points=[(s, high) for s, (_, high) in zip(steps, bounds, strict=True)],
            color=color_of(2),
            faint=True,
        ),
    ]
    return line_chart("Success during training", series)


def _spectra(run: RunFolder) -> Section:
    rows = run.rows("spectra")
    groups = list(dict.fromkeys(name for row in rows for name in row.get("groups", {})))
    if not groups:
        body = paragraph("No spectra were logged.", "soft")
        return Section(anchor="spectra", title="Spectra", body=body)
    legend = "".join(
        f'<span><b style="background:{color_of(i)}"></b>{esc(name)}</span>'
        for i, name in enumerate(groups)
    )
    charts = "".join(
        line_chart(
            title,
            [
                Series(name="", points=_group_points(rows, name, field), color=color_of(i))
                for i, name in enumerate(groups)
            ],
            log_y=log_y,
        )
        for field, title, log_y in _SPECTRA
    )
    intro = (
        "Per optimizer group, means over the matrices that were looked at: the spectrum of the "
        "momentum, which the spectral map sees, how many of its directions the map lets through, "
        "and the size of the step beside that of the weights."
    )
    body = (
        f'{paragraph(intro, "soft")}<div class="legend keys">{legend}</div>'
        f'<div class="charts two">{charts}</div>'
        f"<h3>Last measurement</h3>{_last_spectra(rows, groups)}"
    )
    return Section(anchor="spectra", title="Spectra", body=body)


def _last_spectra(rows: Sequence[Row], groups: Sequence[str]) -> str:
    columns = (
        ("matrices", "Matrices"),
        ("stable_rank", "Stable rank"),
        ("effective_rank", "Eff. rank"),
        ("top_energy", "Top energy"),
        ("directions_passed", "Passed"),
        ("update_rms", "Update RMS"),
        ("weight_rms", "Weight RMS"),
        ("update_to_weight", "Ratio"),
    )
    cells = []
    for name in groups:
        last = next(row["groups"][name] for row in reversed(rows) if name in row.get("groups", {}))
        figures = [_figure(last.get(field)) for field, _ in columns]
        still = f"{_figure(last.get('zero_updates'))}/{_figure(last.get('matrices')) or '?'}"
        cells.append([esc(name), esc(last.get("algorithm", "")), *figures, still])
    head = ("Group", "Algorithm", *(title for _, title in columns), "Still")
    note = "Still: matrices of the group that got a gradient and practically did not move."
    listing = table(head, cells, numeric=range(2, len(head)), anchor="spectra-table")
    return listing + paragraph(note, "soft small")


def _warnings(run: RunFolder) -> Section:
    if not run.warnings:
        text = "None." if run.log else "No training log, so none are known."
        return Section(anchor="warnings", title="Warnings", body=paragraph(text, "soft"))
    rows = [
        (
            esc(row.get("step", "")),
            esc(row.get("message", "")),
            "<br>".join(esc(layer) for layer in row.get("layers") or ()),
        )
        for row in run.warnings
    ]
    listing = table(("Step", "Warning", "Layers"), rows, numeric=(0,), anchor="warning-table")
    return Section(anchor="warnings", title=f"Warnings ({len(rows)})", body=listing)


def clock(seconds: float) -> str:
    """Return a duration for reading, for example "1 h 02 min", "7 min 30 s", "12.5 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _points(rows: Iterable[Row], field: str) -> list[Point]:
    return [(float(row["step"]), y) for row in rows if (y := _finite(row.get(field))) is not None]


def _group_points(rows: Iterable[Row], group: str, field: str) -> list[Point]:
    return [
        (float(row["step"]), y)
        for row in rows
        if (y := _finite(row.get("groups", {}).get(group, {}).get(field))) is not None
    ]


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _figure(value: Any) -> str:
    finite = _finite(value)
    return "" if finite is None else number(finite)


def _window(points: Sequence[Point]) -> int:
    """How many logged values are averaged: one in forty, so none in a short run."""
    return max(1, len(points) // 40)


def _spans_decades(points: Sequence[Point]) -> bool:
    """Whether a logarithmic axis shows more: all positive and more than a factor 20 apart."""
    values = [y for _, y in points]
    return bool(values) and min(values) > 0 and max(values) / min(values) > 20
