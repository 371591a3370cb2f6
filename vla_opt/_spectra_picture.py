"""A picture of the dead zone: how much of a direction passes, by the share of the norm it holds."""

import math
from collections.abc import Sequence

from vla_opt.spectra import curve, threshold
from vla_opt.spectral import NEWTON_SCHULZ, Coefficients, high_pass

_WIDTH, _HEIGHT = 640, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 16, 16, 62
_DECADES = 4  # shares from 0.01 % to 100 %
_COLORS = ("#b23a2e", "#d98a1f", "#4f8f3a", "#2b6cb0")


def dead_zone_picture() -> str:
    """SVG of the factor that a direction gets under Muon and under Pion with 0 to 3 promotions.

    A matrix whose directions all lie where its curve is zero does not move at all. The shaded part
    is that of promotion_steps=0.
    """
    lines = [_line(NEWTON_SCHULZ, "#9aa5b1", 1.4)]
    for promotion, color in enumerate(_COLORS):
        coefficients = high_pass(promotion, 5 - promotion)
        lines += [_line(coefficients, color, 2.0), _mark(coefficients, color, promotion)]
    dead = _x(threshold(high_pass(0, 5)))
    shade = (
        f'<rect x="{_LEFT}" y="{_y(1.2):.0f}" width="{dead - _LEFT:.1f}" '
        f'height="{_y(0) - _y(1.2):.0f}" fill="{_COLORS[0]}" opacity="0.07"/>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="11">'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>{shade}{_axes()}'
        f"{''.join(lines)}{_legend()}</svg>\n"
    )


def _x(share: float) -> float:
    return _LEFT + (math.log10(share) + _DECADES) / _DECADES * (_WIDTH - _LEFT - _RIGHT)


def _y(factor: float) -> float:
    return _TOP + (1.2 - factor) / 1.2 * (_HEIGHT - _TOP - _BOTTOM)


def _line(coefficients: Coefficients, color: str, width: float) -> str:
    points = " ".join(f"{_x(share):.1f},{_y(f):.1f}" for share, f in curve(coefficients))
    return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{width}"/>'


def _mark(coefficients: Coefficients, color: str, promotion: int) -> str:
    share = threshold(coefficients)
    text = f"{100 * share:.0f} %" if share > 0.02 else f"{100 * share:.1f} %"
    return (
        f'<circle cx="{_x(share):.1f}" cy="{_y(0.5):.1f}" r="3" fill="{color}"/>'
        f'<text x="{_x(share) - 6:.1f}" y="{_y(0.5) - 6:.1f}" fill="{color}" text-anchor="end">'
        f"{text}</text>"
    )


def _axes() -> str:
    parts = []
    for share, text in (
        (1e-4, "0.01 %"),
        (1e-3, "0.1 %"),
        (1e-2, "1 %"),
        (0.1, "10 %"),
        (1, "100 %"),
    ):
        x, anchor = _x(share), "end" if share == 1 else "middle"
        parts.append(_rule(x, _y(0), x, _y(1.2)))
        parts.append(f'<text x="{x:.1f}" y="{_y(0) + 15:.0f}" text-anchor="{anchor}">{text}</text>')
    for factor in (0.0, 0.5, 1.0):
        parts.append(_rule(_LEFT, _y(factor), _WIDTH - _RIGHT, _y(factor)))
        parts.append(
            f'<text x="{_LEFT - 6}" y="{_y(factor) + 4:.0f}" text-anchor="end">{factor:g}</text>'
        )
    caption = "share of the momentum's squared norm that a direction holds"
    parts.append(f'<text x="{_LEFT}" y="{_y(0) + 31:.0f}">{caption}</text>')
    parts.append(
        f'<text x="12" y="{_y(0.6):.0f}" text-anchor="middle" '
        f'transform="rotate(-90 12 {_y(0.6):.0f})">factor in the update</text>'
    )
    return "".join(parts)


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#e3e8ee"/>'


def _legend() -> str:
    names: Sequence[tuple[str, str]] = [
        *((f"Pion {p} + {5 - p}", color) for p, color in enumerate(_COLORS)),
        ("Muon", "#9aa5b1"),
    ]
    return "".join(
        f'<rect x="{_LEFT + 112 * i}" y="{_HEIGHT - 18}" width="14" height="4" fill="{color}"/>'
        f'<text x="{_LEFT + 112 * i + 20}" y="{_HEIGHT - 12}">{name}</text>'
        for i, (name, color) in enumerate(names)
    )
