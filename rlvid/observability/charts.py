"""Line charts as inline SVG: no script, no download, colours from the page's own variables.

Coordinates are SVG units; a chart scales with the page. Each point has a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

SMALL, WIDE = (330, 196), (980, 320)
"""Width and height, near the size at which the page shows them, so that text keeps its size."""
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 32
"""Margins around the plotted area."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a chart."""

    label: str
    points: Sequence[tuple[float, float]]
    """(step, value), ascending."""
    band: Sequence[float] = ()
    """Half-width of a shaded band at each point, e.g. a standard deviation; empty draws none."""
    colour: int = 0
    """Which of the page's colours c0 to c5."""
    marks_points: bool = False
    """Draw a dot at each point, for values that are measured now and then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A vertical line at a step, for what happened there."""

    at: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """From values to places on one axis."""

    low: float
    high: float
    start: float
    stop: float
    is_log: bool = False

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "",
    note: str = "",
    size: tuple[int, int] = SMALL,
    marks: Sequence[Mark] = (),
    axis_holds: Sequence[float] = (),
) -> str:
    """Return a figure with title, legend and chart; "" when no series has a finite point.

    Marks outside the steps of the series are left out; the axis reaches the values of `axis_holds`.
    The axis turns logarithmic when all values are positive and span more than a factor of 200.
    """
    kept = [finite(line) for line in series]
    kept = [line for line in kept if line.points]
    if not kept:
        return ""
    values = [
        value + sign * half
        for line in kept
        for (_, value), half in zip(line.points, line.band or [0.0] * len(line.points), strict=True)
        for sign in (-1.0, 1.0)
    ]
    values += axis_holds
    steps = [step for line in kept for step, _ in line.points]
    is_log = min(values) > 0 and max(values) / min(values) > 200
    low, high = (min(values), max(values)) if is_log else padded(min(values), max(values))
    last = max(max(steps), min(steps) + 1)
    across = Scale(low=min(steps), high=last, start=LEFT, stop=size[0] - RIGHT)
    up = Scale(low=low, high=high, start=size[1] - BOTTOM, stop=TOP, is_log=is_log)
    shown = [mark for mark in marks if across.low <= mark.at <= across.high]
    parts = [axes(across, up), *(draw_mark(mark, across, up) for mark in shown)]
    parts += [*(draw_series(line, across, up) for line in kept)]
    legend = "".join(
        f'<span class="key"><i class="swatch c{line.colour}"></i>{escape(line.label)}</span>'
        for line in kept
        if line.label != title
    )
    unit_text = f' <span class="unit">{escape(unit)}</span>' if unit and unit != "1" else ""
    note_text = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{unit_text}</figcaption>'
        f'<div class="legend">{legend}</div>'
        f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>{note_text}</figure>"
    )


def finite(line: Series) -> Series:
    """Return the series without its non-finite points."""
    bands = line.band or [0.0] * len(line.points)
    kept = [
        (point, half)
        for point, half in zip(line.points, bands, strict=True)
        if math.isfinite(point[1]) and math.isfinite(half)
    ]
    return Series(
        label=line.label,
        points=[point for point, _ in kept],
        band=[half for _, half in kept] if line.band else (),
        colour=line.colour,
        marks_points=line.marks_points,
    )


def padded(low: float, high: float) -> tuple[float, float]:
    """Return the range with a little room; a constant gets a range around it."""
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def axes(across: Scale, up: Scale) -> str:
    """Return grid lines and their numbers."""
    parts = []
    right, bottom = across.stop, up.start
    for value in log_ticks(up.low, up.high) if up.is_log else ticks(up.low, up.high, 5):
        y = up.place(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">')
        parts.append(f"{number(value)}</text>")
    for value in ticks(across.low, across.high, 6 if across.stop < 500 else 12):
        if value == round(value):
            x = across.place(value)
            parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}"')
            parts.append(f' text-anchor="middle">{value:.0f}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    parts.append(f'<text class="tick" x="{right}" y="{bottom + 29}" text-anchor="end">')
    parts.append("step</text>")
    return "".join(parts)


def draw_series(line: Series, across: Scale, up: Scale) -> str:
    """Return band, line and points of one series."""
    spots = [(across.place(step), up.place(value)) for step, value in line.points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
    parts = []
    if line.band:
        pairs = list(zip(line.points, line.band, strict=True))
        upper = [(across.place(s), up.place(v + half)) for (s, v), half in pairs]
        lower = [(across.place(s), up.place(v - half)) for (s, v), half in reversed(pairs)]
        outline = "L".join(f"{x:.1f} {y:.1f}" for x, y in [*upper, *lower])
        parts.append(f'<path class="band c{line.colour}" d="M{outline}Z"/>')
    parts.append(f'<path class="line c{line.colour}" d="M{path}"/>')
    visible = " seen" if line.marks_points or len(spots) == 1 else ""
    for (x, y), (step, value) in zip(spots, line.points, strict=True):
        parts.append(
            f'<circle class="dot c{line.colour}{visible}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">'
            f"<title>{escape(line.label)}, step {step:g}: {number(value)}</title></circle>"
        )
    return "".join(parts)


def draw_mark(mark: Mark, across: Scale, up: Scale) -> str:
    """Return the line of a mark, which says what it is when pointed at."""
    x = across.place(mark.at)
    return (
        f'<path class="mark" d="M{x:.1f} {up.start}V{up.stop}">'
        f"<title>step {mark.at:g}: {escape(mark.label)}</title></path>"
    )


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers in [low, high]."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten in [low, high]."""
    return [10.0**k for k in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]


def number(value: float) -> str:
    """Return the value with three digits that matter."""
    if value == 0:
        return "0"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"
