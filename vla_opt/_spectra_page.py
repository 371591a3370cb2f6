"""The page of `vla-opt spectra`: singular values per layer, what the map makes of them, curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from vla_opt._singular_values import KINDS, LayerReading
from vla_opt.evaluation._charts import Point, Series, color_of, line_chart
from vla_opt.evaluation._html import Section, esc, page, paragraph
from vla_opt.evaluation._html import table as html_table
from vla_opt.spectra import LayerSpectrum, WhatIf

_LOGGED = (
    ("directions_passed", "Directions passed"),
    ("top_energy", "Top energy of the momentum"),
    ("stable_rank", "Stable rank of the momentum"),
    ("update_to_weight", "Update / weight (RMS)"),
)


def spectra_page(
    source: str,
    layers: Sequence[LayerSpectrum],
    answers: Sequence[WhatIf],
    readings: Sequence[LayerReading],
    logged: Sequence[Mapping[str, Any]],
) -> str:
    """A page that needs nothing from the network.

    Args:
        source: what was read, for the heading.
        layers: spectra of the checkpoint.
        answers: of `what_if`.
        readings: gradients, momenta and updates at the last logged step; may be empty.
        logged: rows of the training log of kind "spectra"; may be empty.
    """
    header = f"<h1>Spectra</h1>{paragraph(source, 'soft')}"
    sections = [
        Section(anchor="layers", title="Layers", body=_layers(layers)),
        Section(anchor="promotion", title="Promotion steps", body=_promotion(answers)),
        Section(anchor="values", title="Singular values", body=_values(layers)),
        Section(anchor="updates", title="Gradient, momentum, update", body=_readings(readings)),
        Section(anchor="course", title="Course of the run", body=_course(logged)),
    ]
    return page("Spectra", header, sections, esc(source))


def _layers(layers: Sequence[LayerSpectrum]) -> str:
    head = ("Layer", "Algorithm", "Shape", "Matrices", "Stable rank", "Eff. rank", "Top energy",
            "Passed", "Dead")  # fmt: skip
    cells = [
        [esc(layer.name), esc(layer.algorithm), "x".join(map(str, layer.shape)),
         str(len(layer.sigma)), f"{layer.stable_rank:.2f}", f"{layer.effective_rank:.1f}",
         f"{layer.top_energy:.2f}",
         "" if layer.directions_passed is None else f"{layer.directions_passed:.2f}",
         str(layer.dead or "")]
        for layer in layers
    ]  # fmt: skip
    note = (
        "Of the momentum, means over the matrices (heads, experts) of a layer. Passed: squared "
        "norm of the update before scaling, about the number of directions. Dead: matrices of "
        "which nothing passes."
    )
    return html_table(head, cells, numeric=range(3, len(head))) + paragraph(note, "soft small")


def _promotion(answers: Sequence[WhatIf]) -> str:
    head = ("Promotion + suppression", "Directions passed", "Dead matrices")
    cells = [
        [f"{row.promotion_steps} + {5 - row.promotion_steps}", f"{row.passed:.2f}",
         f"{row.dead}/{row.matrices}"]
        for row in answers
    ]  # fmt: skip
    note = "What the high-pass Pion would let through of these momenta, for all matrices above."
    return html_table(head, cells, numeric=(1, 2)) + paragraph(note, "soft small")


def _values(layers: Sequence[LayerSpectrum]) -> str:
    charts = []
    for name in dict.fromkeys(layer.group for layer in layers):
        members = [layer for layer in layers if layer.group == name]
        series = [
            Series(name="", points=_points(layer.sigma[0].tolist()), color=color_of(0), faint=True)
            for layer in members
        ]
        series += [
            Series(name="", points=_points(layer.mapped[0].tolist()), color=color_of(1), faint=True)
            for layer in members
            if layer.mapped is not None
        ]
        charts.append(line_chart(f"{name}: {len(members)} layers", series, x_label="direction"))
    note = (
        "First matrix of each layer. Blue: singular values of the momentum over its norm. Orange: "
        "after the map, so that one is a direction that passes."
    )
    return f'<div class="charts two">{"".join(charts)}</div>{paragraph(note, "soft small")}'


def _readings(readings: Sequence[LayerReading]) -> str:
    if not readings:
        return paragraph("No layers were logged: train with spectra_every above 0.", "soft")
    legend = "".join(
        f'<span><b style="background:{color_of(i)}"></b>{kind}</span>'
        for i, kind in enumerate(KINDS)
    )
    charts = []
    for group in dict.fromkeys(layer.group for layer in readings):
        members = [layer for layer in readings if layer.group == group]
        series = [
            Series(
                name="", points=_at(layer.ranks, layer.values[kind]), color=color_of(i), faint=True
            )
            for i, kind in enumerate(KINDS)
            for layer in members
            if kind in layer.values
        ]
        title = f"{group}: {len(members)} layers"
        charts.append(line_chart(title, series, x_label="direction", log_y=True))
    note = (
        "As the run logged them at its last reading, each set over its own Frobenius norm: of one "
        "matrix (head, expert) of each layer looked at. The update is what the step changed beside "
        "weight decay; rounding of the weights shows in it, in 16 bits or at a rate near zero."
    )
    head = ("Layer", "Group", "Shape", *(f"Top energy of {kind}" for kind in KINDS))
    cells = [
        [esc(layer.name), esc(layer.group), "x".join(map(str, layer.shape)),
         *("" if energy is None else f"{energy:.3f}" for energy in map(layer.top_energy, KINDS))]
        for layer in readings
    ]  # fmt: skip
    return (
        f'{paragraph(note, "soft small")}<div class="legend keys">{legend}</div>'
        f'<div class="charts two">{"".join(charts)}</div>'
        f"{html_table(head, cells, numeric=range(3, len(head)))}"
    )


def _at(ranks: Sequence[int], values: Sequence[float]) -> list[Point]:
    return [(float(rank), value) for rank, value in zip(ranks, values, strict=True)]


def _points(values: Sequence[float]) -> list[Point]:
    return [(float(i + 1), value) for i, value in enumerate(values)]


def _course(logged: Sequence[Mapping[str, Any]]) -> str:
    groups = list(dict.fromkeys(name for row in logged for name in row.get("groups", {})))
    if not groups:
        return paragraph("No spectra were logged: train with spectra_every above 0.", "soft")
    charts = []
    for key, title in _LOGGED:
        series = []
        for i, name in enumerate(groups):
            found = [(row["step"], row["groups"].get(name, {}).get(key)) for row in logged]
            points = [(float(step), float(value)) for step, value in found if value is not None]
            series.append(Series(name=name, points=points, color=color_of(i)))
        if key == "directions_passed":  # one of Pion's beside a hundred of Muon's would not be seen
            charts += [line_chart(f"{title}: {s.name}", [s]) for s in series if s.points]
        else:
            charts.append(line_chart(title, series))
    return f'<div class="charts two">{"".join(charts)}</div>'
