"""Small charts as SVG text: lines over steps, and an interval on a bar. No plotting library.

SVG made here is a few kilobytes, stays sharp, and its text can be searched and copied.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vla_opt.evaluation._html import esc

# Colours that remain distinct for the common kinds of colour blindness (after Okabe and Ito, 2008).
PALETTE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#b0568f",
    "#5d6b7a",
    "#b8860b",
    "#2a9fd6",
    "#7a4fbf",
)
_WIDTH, _HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 8, 34
_MAX_POINTS = 400

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line of a chart; points that are not finite numbers are gaps.

    Attributes:
        name: What the legend calls it; empty for none.
        points: (x, y) in ascending x.
        color: A CSS colour.
        faint: Thin and pale, for raw values behind a smoothed line.
    """

    name: str
    points: Sequence[Point]
    color: str = PALETTE[0]
    faint: bool = False


@dataclass(frozen=True, kw_only=True)
class Band:
    """A shaded range around a line; a single place is a bar.

    Attributes:
        points: (x, low, high) in ascending x, all finite.
        color: A CSS colour.
    """

    points: Sequence[tuple[float, float, float]]
    color: str = PALETTE[0]


def color_of(index: int) -> str:
    """Return the colour of the n-th series; beyond the palette colours repeat."""
    return PALETTE[index % len(PALETTE)]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "step",
    log_y: bool = False,
    bands: Sequence[Band] = (),
) -> str:
    """Return a titled chart as HTML with inline SVG.

    Args:
        title: What the y axis shows, with its unit.
        series: At least one line; lines without a finite point are left out.
        x_label: What the x axis shows.
        log_y: Logarithmic y axis; values that are not positive become gaps.
        bands: Shaded behind the lines; with `log_y` where they are positive.
    """
    shaded = [_positive(band) if log_y else band for band in bands]
    drawn = [_clean(s, log_y) for s in series]
    points = [point for run in drawn for part in run for point in part]
    if not points:
        return (
            f'<div class="chart"><h3>{esc(title)}</h3><p class="soft small">no values yet</p></div>'
        )
    x_axis = _Axis.over([x for x, _ in points], _LEFT, _WIDTH - _RIGHT)
    edges = [edge for band in shaded for _, *both in band.points for edge in both]
    y_axis = _Axis.over([*(y for _, y in points), *edges], _HEIGHT - _BOTTOM, _TOP, log=log_y)
    lines = "".join(
        _polyline(part, s, x_axis, y_axis)
        for s, run in zip(series, drawn, strict=True)
        for part in run
    )
    return (
        f'<div class="chart"><h3>{esc(title)}{" (log scale)" if log_y else ""}</h3>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{esc(title)}">'
        f"{_grid(x_axis, y_axis, x_label)}{_areas(shaded, x_axis, y_axis)}{lines}</svg>"
        f"{_legend(series)}</div>"
    )


def interval_bar(rate: float, low: float, high: float) -> str:
    """Return a bar from 0 to 100 % with the interval shaded and the rate marked.

    Args:
        rate: The measured share, between 0 and 1.
        low: Lower end of its interval.
        high: Upper end of its interval.
    """
    left, mark, width = 100 * low, 100 * rate, 100 * (high - low)
    ticks = "".join(
        f'<line x1="{x}" x2="{x}" y1="3" y2="13" stroke="#fff" stroke-width="1"/>'
        for x in (25, 50, 75)
    )
    return (
        f'<svg class="bar" viewBox="-2 0 104 16" preserveAspectRatio="none" role="img" '
        f'aria-label="{mark:.1f} %, interval {left:.1f} to {left + width:.1f} %">'
        f'<rect x="0" y="6" width="100" height="4" rx="1" fill="#e6eaef"/>{ticks}'
        f'<rect x="{left:.2f}" y="4" width="{width:.2f}" height="8" rx="1" fill="#9cc4e8"/>'
        f'<rect x="{mark - 1:.2f}" y="1" width="2" height="14" fill="#1d4f86"/></svg>'
    )


def smooth(points: Sequence[Point], window: int) -> list[Point]:
    """Return the mean of each point and the finite ones before it, `window` in all."""
    points = [point for point in points if math.isfinite(point[1])]
    result, total = [], 0.0
    for i, (x, y) in enumerate(points):
        total += y
        if i >= window:
            total -= points[i - window][1]
        result.append((x, total / min(i + 1, window)))
    return result


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Maps values to pixels and knows where its ticks are."""

    place: Callable[[float], float]
    ticks: list[float]

    @staticmethod
    def over(values: Sequence[float], start: float, stop: float, *, log: bool = False) -> "_Axis":
        low, high = min(values), max(values)
        if log:
            low, high = math.log10(low), math.log10(high)
        elif 0 <= low < 0.5 * high:
            low = 0.0  # heights can be compared
        if high - low < 1e-12 * max(1.0, abs(low)):
            low, high = low - 0.5, high + 0.5
        span = high - low
        margin = 0.04 * span if stop < start else 0.0  # air above and below, none at the sides
        low, high = (low - margin if low else low), high + margin
        scale = (stop - start) / (high - low)

        def place(value: float) -> float:
            return start + ((math.log10(value) if log else value) - low) * scale

        return _Axis(place=place, ticks=(_log_ticks if log else _ticks)(low, high))


def _clean(series: Series, log_y: bool) -> list[list[Point]]:
    """Split a line at its gaps, and thin it out without losing its extremes."""
    runs: list[list[Point]] = [[]]
    for x, y in series.points:
        if math.isfinite(y) and (y > 0 or not log_y):
            runs[-1].append((float(x), float(y)))
        elif runs[-1]:
            runs.append([])
    return [_thin(run) for run in runs if run]


def _thin(points: list[Point]) -> list[Point]:
    if len(points) <= _MAX_POINTS:
        return points
    size = math.ceil(2 * len(points) / _MAX_POINTS)
    kept = {points[0], points[-1]}
    for start in range(0, len(points), size):
        part = points[start : start + size]
        kept |= {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
    return sorted(kept)


def _polyline(points: list[Point], series: Series, x_axis: _Axis, y_axis: _Axis) -> str:
    style = (
        'stroke-width="1" stroke-opacity="0.3"'
        if series.faint
        else 'stroke-width="1.8" stroke-linejoin="round"'
    )
    at = [(x_axis.place(x), y_axis.place(y)) for x, y in points]
    if len(at) == 1:
        return f'<circle cx="{at[0][0]:.1f}" cy="{at[0][1]:.1f}" r="2.5" fill="{series.color}"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    return f'<polyline points="{path}" fill="none" stroke="{series.color}" {style}/>'


def _positive(band: Band) -> Band:
    return Band(points=[p for p in band.points if min(p[1:]) > 0], color=band.color)


def _areas(bands: Sequence[Band], x_axis: _Axis, y_axis: _Axis) -> str:
    parts = []
    for band in bands:
        upper = [(x, high) for x, _, high in band.points]
        lower = [(x, low) for x, low, _ in reversed(band.points)]
        path = " ".join(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in upper + lower)
        stroke = f'stroke="{band.color}" stroke-opacity="0.35"'
        parts.append(f'<polygon points="{path}" fill="{band.color}" fill-opacity="0.14" {stroke}/>')
    return "".join(part for part, band in zip(parts, bands, strict=True) if band.points)


def _grid(x_axis: _Axis, y_axis: _Axis, x_label: str) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        parts.append(
            f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e6eaef"/>'
            f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    for tick in x_axis.ticks:
        x = x_axis.place(tick)
        anchor = "end" if x > right - 12 else "middle"
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}" stroke="#b9c2cc"/>'
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="{anchor}">{number(tick)}</text>'
        )
    parts.append(
        f'<line x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="#b9c2cc"/>'
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">'
        f"{esc(x_label)}</text>"
    )
    return "".join(parts)


def _legend(series: Sequence[Series]) -> str:
    entries = "".join(
        f'<span><b style="background:{s.color}{"66" if s.faint else ""}"></b>{esc(s.name)}</span>'
        for s in series
        if s.name
    )
    return f'<div class="legend">{entries}</div>' if entries else ""


def _ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round values between `low` and `high`, at distances of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between 10**low and 10**high, with 2 and 5 between them where there is room."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    steps = (1, 2, 5) if high - low < 2 else (1,)
    every = max(1, math.ceil((high - low) / 5))
    ticks = [m * 10.0**d for d in decades if d % every == 0 for m in steps]
    inside = [t for t in ticks if low - 1e-9 <= math.log10(t) <= high + 1e-9]
    return inside if len(inside) > 1 else _ticks(10.0**low, 10.0**high)


def number(value: float) -> str:
    """Return a short text of a number: 1500 as "1500", 20000 as "20k", 0.00002 as "2e-5"."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10_000:
        scale, unit = (1e6, "M") if size >= 1e6 else (1e3, "k")
        return f"{value / scale:.4g}{unit}"
    if size < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"
