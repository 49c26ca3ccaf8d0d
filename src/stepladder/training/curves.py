"""Curves as SVG, for a page that needs no other file: a line for each series, axes with round numbers, a legend.

Long series are thinned to the means of equal parts, so that the size of a page does not grow with its run. An axis is
logarithmic where its values are positive and span more than a factor of 20.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle, pairwise

__all__ = ["Points", "chart", "thinned"]

Points = Sequence[tuple[float, float]]
"""Pairs of step and value, the steps rising."""

_WIDTH, _HEIGHT = 560, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 28, 12, 54
_MOST_POINTS = 400
_WIDE = 20
"""A range of values above this factor is drawn on a logarithmic axis."""
_COLOURS = ("#6366f1", "#ea580c", "#059669", "#db2777", "#0284c7", "#a16207", "#7c3aed", "#64748b")


def chart(title: str, series: Mapping[str, Points], *, linear: bool = False) -> str:
    """A figure with a curve for each series; empty if there is no data.

    Args:
        title: Above the curves.
        series: Points by name. Values that are not finite are left out, and so is a series that is always 0.
        linear: Whether the axis of the values is linear whatever their range.
    """
    found = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    lines = {name: thinned(points) for name, points in found.items() if any(y for _, y in points)}
    if not lines:
        return ""
    steps = [x for points in lines.values() for x, _ in points]
    values = [y for points in lines.values() for _, y in points]
    log = not linear and min(values) > 0 and max(values) > _WIDE * min(values)
    across, up = _Axis(steps, log=False), _Axis(values, log=log)
    drawn, legend = [], []
    for (name, points), colour in zip(lines.items(), cycle(_COLOURS), strict=False):
        places = [(_x(across.place(x)), _y(up.place(y))) for x, y in points]
        drawn.append(_line(places, colour))
        last = found[name][-1][1]
        legend.append(f'<li><i style="background:{colour}"></i>{escape(name)} <b>{last:.4g}</b></li>')
    return (
        f"<figure><figcaption>{escape(title)}{', logarithmic' if log else ''}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{_grid(across, up)}{''.join(drawn)}</svg><ul>{''.join(legend)}</ul></figure>"
    )


def thinned(points: Points, most: int = _MOST_POINTS) -> Points:
    """At most `most` points: means of equal parts, the last part ending with the last point."""
    if len(points) <= most:
        return points
    edges = [round(index * len(points) / most) for index in range(most + 1)]
    parts = [points[a:b] for a, b in pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


class _Axis:
    """From values to places in [0, 1], with round values to mark."""

    def __init__(self, values: Sequence[float], *, log: bool) -> None:
        self._log = log
        low, high = min(values), max(values)
        if low == high:
            room = abs(low) / 2 or 0.5
            low, high = low - room, high + room
        self.marks = _powers(low, high) if log else _round_numbers(low, high)
        self._low, self._high = self._scaled(low), self._scaled(high)

    def place(self, value: float) -> float:
        return (self._scaled(value) - self._low) / (self._high - self._low)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._log else value


def _round_numbers(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within the range."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within the range; powers alone where there are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 4 else (1,)
    marks = [factor * 10.0**decade for decade in decades for factor in factors]
    return [mark for mark in marks if low <= mark <= high]


def _x(place: float) -> float:
    return _LEFT + place * (_WIDTH - _LEFT - _RIGHT)


def _y(place: float) -> float:
    return _HEIGHT - _BOTTOM - place * (_HEIGHT - _TOP - _BOTTOM)


def _line(places: Points, colour: str) -> str:
    """A polyline; a dot as well where there are few points, and for a single one."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places) if len(places) <= 30 else ""
    return f'<g stroke="{colour}" fill="{colour}"><polyline fill="none" points="{path}"/>{dots}</g>'


def _grid(across: _Axis, up: _Axis) -> str:
    parts = []
    for mark, text in zip(up.marks, _written(up.marks), strict=True):
        y = _y(up.place(mark))
        parts.append(f'<path d="M{_LEFT},{y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 5:.1f}" text-anchor="end">{text}</text>')
    for mark in (mark for mark in across.marks if mark == round(mark)):  # there is no half of a step
        x = _x(across.place(mark))
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">{_short(mark)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:g}" y="{_HEIGHT - 10}" text-anchor="middle">step</text>')
    return f'<g class="grid">{"".join(parts)}</g>'


def _written(marks: Sequence[float]) -> list[str]:
    """Marks of one axis in one notation."""
    plain = [f"{mark:.4g}" for mark in marks]
    if not any("e" in text or len(text) > 6 for text in plain):
        return plain
    parts = (f"{mark:.3e}".split("e") for mark in marks)
    return ["0" if not float(digits) else f"{float(digits):g}e{int(power)}" for digits, power in parts]


def _short(step: float) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}"
