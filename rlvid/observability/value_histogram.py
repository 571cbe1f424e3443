"""How values are spread, as inline SVG in the style of the page's other charts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rlvid.observability.charts import SMALL, Scale, number, padded, ticks

LEFT, RIGHT, TOP, BOTTOM = 34, 10, 16, 34
"""Margins around the plotted area, SVG units."""


def value_histogram(
    title: str,
    values: Sequence[float],
    *,
    reach: tuple[float, float],
    unit: str,
    num_bins: int,
    colour: int,
) -> str:
    """Return a figure with the counts of the bins and a line at the mean.

    Args:
        values: at least one, all in `reach`.
        reach: ends of the axis; charts of one reach can be compared by eye.
        unit: what the axis shows.
        colour: which of the page's.
    """
    width, height = SMALL[0], 150
    low, high = reach if reach[0] < reach[1] else padded(*reach)
    counts = bin_counts(values, low, high, num_bins)
    most, mean = max(counts), sum(values) / len(values)
    across = Scale(low=low, high=high, start=LEFT, stop=width - RIGHT)
    up = Scale(low=0.0, high=float(most), start=height - BOTTOM, stop=TOP)
    parts = []
    for level in (0, most):
        y = up.place(level)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{width - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">')
        parts.append(f"{level}</text>")
    parts += _bars(counts, across, up, colour)
    parts.append(_axis(across, unit, height))
    x = across.place(mean)
    parts.append(f'<path class="mark" d="M{x:.1f} {TOP - 4}V{height - BOTTOM}"/>')
    label = f"{title}: {len(values)} values, mean {number(mean)}"
    return (
        f'<figure class="chart"><figcaption>{escape(title)} '
        f'<span class="unit">{len(values)} clips, mean {mean:.3f}</span></figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def bin_counts(values: Sequence[float], low: float, high: float, num_bins: int) -> list[int]:
    """Return how many values lie in each of the equal parts of [low, high]."""
    counts = [0] * num_bins
    for value in values:
        place = int((value - low) / (high - low) * num_bins)
        counts[min(max(place, 0), num_bins - 1)] += 1
    return counts


def _bars(counts: Sequence[int], across: Scale, up: Scale, colour: int) -> list[str]:
    parts = []
    wide = (across.high - across.low) / len(counts)
    for place, count in enumerate(counts):
        first, last = across.low + wide * place, across.low + wide * (place + 1)
        x, y = across.place(first), up.place(count)
        parts.append(
            f'<rect class="work c{colour}" x="{x + 0.6:.1f}" y="{y:.1f}" '
            f'width="{across.place(last) - x - 1.2:.1f}" height="{up.start - y:.1f}">'
            f"<title>{number(first)} to {number(last)}: {count}</title></rect>"
        )
    return parts


def _axis(across: Scale, unit: str, height: float) -> str:
    bottom = height - BOTTOM
    parts = [f'<path class="axis" d="M{across.start} {bottom}H{across.stop}"/>']
    for value in ticks(across.low, across.high, 5):
        x = across.place(value)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 15}"')
        parts.append(f' text-anchor="middle">{value:g}</text>')
    parts.append(f'<text class="tick" x="{across.stop}" y="{bottom + 29}" text-anchor="end">')
    parts.append(f"{escape(unit)}</text>")
    return "".join(parts)
