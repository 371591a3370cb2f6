"""Learning curves of a comparison: success and loss over steps and time, with bands over seeds."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from vla_opt.evaluation._charts import Band, Series, color_of, line_chart
from vla_opt.evaluation.bootstrap import bootstrap_mean
from vla_opt.io import Row

Axis = Literal["step", "minutes"]


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One measurement of one run.

    Attributes:
        step: Updates done.
        train_s: Seconds spent on them; evaluations are not in it.
        successes: Episodes that succeeded; 0 where only the loss was logged.
        scored: Episodes with an outcome; 0 where only the loss was logged.
        loss: Training loss; None where only success was measured.
    """

    step: int
    train_s: float
    successes: int = 0
    scored: int = 0
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The measurements of one run.

    Attributes:
        arm: Which optimizer.
        seed: Training seed.
        points: By step.
    """

    arm: str
    seed: int
    points: tuple[CurvePoint, ...]


def curve_of(arm: str, seed: int, log: Iterable[Row], final: CurvePoint | None) -> Curve:
    """Read a run's curve from its log.

    Args:
        arm: Which optimizer.
        seed: Training seed.
        log: Rows of its log.jsonl.
        final: The evaluation at its end; takes the place of a periodic one at that step.
    """
    rows = list(log)
    clock = {int(r["step"]): float(r["wall_s"]) for r in rows if r["kind"] == "train"}
    points = {
        ("loss", step): CurvePoint(step=step, train_s=clock[step], loss=float(row["loss"]))
        for row in rows
        if row["kind"] == "train" and (step := int(row["step"])) in clock
    }
    for row in rows:
        if row["kind"] == "eval" and row.get("episodes"):
            step = int(row["step"])
            points["eval", step] = CurvePoint(
                step=step,
                train_s=_clock_at(clock, step),
                successes=int(row["successes"]),
                scored=int(row["episodes"]),
            )
    if final is not None and final.scored:
        points["eval", final.step] = final
    ordered = sorted(points.values(), key=lambda point: (point.step, point.scored))
    return Curve(arm=arm, seed=seed, points=tuple(ordered))


def curves_csv(curves: Iterable[Curve]) -> str:
    """Return every measurement on a line."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("arm", "seed", "step", "train_s", "successes", "scored", "loss"))
    for curve in curves:
        for p in curve.points:
            counts = (p.successes, p.scored) if p.scored else ("", "")
            loss = "" if p.loss is None else f"{p.loss:.6g}"
            row = (curve.arm, curve.seed, p.step, f"{p.train_s:.2f}", *counts, loss)
            writer.writerow(row)
    return stream.getvalue()


def charts(curves: Sequence[Curve]) -> list[str]:
    """Return charts as HTML: success over steps and minutes, then loss, as far as measured."""
    found = []
    for what, title, log_y in (
        ("success", "Success", False),
        ("loss", "Training loss", True),
    ):
        for axis, label in (("step", "step"), ("minutes", "minutes of training")):
            lines, bands = _lines(curves, what, axis)
            if any(len(line.points) > 1 for line in lines):
                name = f"{title} over {'steps' if axis == 'step' else 'time'}"
                found.append(line_chart(name, lines, x_label=label, log_y=log_y, bands=bands))
    return found


def _lines(curves: Sequence[Curve], what: str, axis: str) -> tuple[list[Series], list[Band]]:
    """The mean of each arm over its seeds, and the bootstrap interval of that mean."""
    lines, bands = [], []
    for index, arm in enumerate(dict.fromkeys(curve.arm for curve in curves)):
        points, band = [], []
        for x, values in _by_step([c for c in curves if c.arm == arm], what, axis):
            points.append((x, sum(values) / len(values)))
            band.append((x, *bootstrap_mean(values)))
        lines.append(Series(name=arm, points=points, color=color_of(index)))
        bands.append(Band(points=band, color=color_of(index)))
    return lines, bands


def _by_step(curves: Sequence[Curve], what: str, axis: str) -> Iterable[tuple[float, list[float]]]:
    """(x, one value per seed) at the steps at which all seeds of an arm were measured."""
    found: dict[int, list[CurvePoint]] = {}
    for curve in curves:
        for point in curve.points:
            if bool(point.scored) == (what == "success"):
                found.setdefault(point.step, []).append(point)
    for step, points in sorted(found.items()):
        if len(points) == len(curves):
            minutes = sum(point.train_s for point in points) / len(points) / 60
            values = [_value(point) for point in points]
            yield (float(step) if axis == "step" else minutes), values


def _value(point: CurvePoint) -> float:
    if point.loss is not None:
        return point.loss
    return point.successes / point.scored


def _clock_at(clock: dict[int, float], step: int) -> float:
    """Seconds of training up to a step: of the last row of the log that is not beyond it."""
    return max((seconds for logged, seconds in clock.items() if logged <= step), default=0.0)
