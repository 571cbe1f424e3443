"""Who did what when, a row for each, as inline SVG.

Work is a solid bar in the colour of the role that works, a wait a pale one in the colour of the
role that is waited for, and what is blank was neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rlvid.observability.charts import ticks
from rlvid.observability.intervals import Interval
from rlvid.observability.time_section import PhaseTime

COLOURS = {
    "learner": 0, "rewards": 1, "rollout": 2, "weights": 3, "checkpoint": 4, "evaluate": 5,
}  # fmt: skip
"""Role to the page's colour."""
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 980, 120, 12, 22, 30
ROW, BAR, THIN = 20, 13, 5
"""Height of a row, of work in it, and of a wait."""
MAX_ROWS = 16
"""Rollout actors that get a row."""


def colour_of(role: str) -> str:
    """Return the class of a role's colour, grey for one that is not known."""
    for name, number in COLOURS.items():
        if role.startswith(name):
            return f"c{number}"
    return "other"


def rows_chart(phase: PhaseTime, num_steps: int) -> str:
    """Return what every row did during the last steps; "" without intervals."""
    steps = phase.steps[-num_steps:]
    start_s, end_s = steps[0].start_s, steps[-1].end_s
    names, hidden = rows_of(phase.intervals)
    if not names or end_s <= start_s:
        return ""
    height = TOP + ROW * len(names) + BOTTOM
    scale = (WIDTH - LEFT - RIGHT) / (end_s - start_s)
    parts = [time_axis(end_s - start_s, scale, height)]
    for step in steps:
        x = LEFT + (step.end_s - start_s) * scale
        centre = LEFT + ((step.start_s + step.end_s) / 2 - start_s) * scale
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP - 4}V{height - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{centre:.1f}" y="{TOP - 8}"')
        parts.append(f' text-anchor="middle">step {step.step}</text>')
    for number, name in enumerate(names):
        y = TOP + ROW * number
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + ROW / 2 + 4:.1f}"')
        parts.append(f' text-anchor="end">{escape(name.removeprefix("rollout/"))}</text>')
        own = [interval for interval in phase.intervals if interval.row == name]
        parts += bars(own, y, start_s, end_s, scale)
    more = f" {hidden} more actors are not shown." if hidden else ""
    return figure(
        "Who did what",
        f"{legend(phase.intervals)}",
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Who did what">'
        f"{''.join(parts)}</svg>",
        "Solid: works. Pale: waits for the role of that colour. Blank: neither; an actor that is "
        f"not there, or driver's work.{more} The whole of it is in trace.json, for "
        "ui.perfetto.dev.",
    )


def rows_of(intervals: Sequence[Interval]) -> tuple[list[str], int]:
    """Return the rows in the order of drawing, and how many actors are left out."""
    names = sorted({interval.row for interval in intervals}, key=natural)
    actors = [name for name in names if name.startswith("rollout/")]
    others = [name for name in names if name not in set(actors)]
    order = list(COLOURS)
    others.sort(key=lambda n: order.index(r) if (r := n.partition("/")[0]) in order else len(order))
    first = [name for name in others if not name.startswith(("evaluate", "checkpoint"))]
    last = [name for name in others if name not in first]
    return [*first, *actors[:MAX_ROWS], *last], max(0, len(actors) - MAX_ROWS)


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that puts actor-10 behind actor-9."""
    words = "".join(c if c.isdigit() else " " + c + " " for c in name).split()
    return [(int(word), "") if word.isdigit() else (-1, word) for word in words]


def bars(
    intervals: Sequence[Interval], y: float, start_s: float, end_s: float, scale: float
) -> list[str]:
    """Return the bars of a row; neighbours of one kind that no eye can part become one."""
    gap_s = 0.5 / scale
    merged: list[Interval] = []
    for interval in sorted(intervals, key=lambda i: (i.is_wait, i.what, i.start_s)):
        last = merged[-1] if merged else None
        same = last is not None and (last.what, last.is_wait) == (interval.what, interval.is_wait)
        if last is not None and same and interval.is_wait and interval.start_s - last.end_s < gap_s:
            merged[-1] = Interval(
                row=last.row,
                what=last.what,
                start_s=last.start_s,
                end_s=max(last.end_s, interval.end_s),
                is_wait=True,
            )
        else:
            merged.append(interval)
    return [bar(interval, y, start_s, end_s, scale) for interval in merged]


def bar(interval: Interval, y: float, start_s: float, end_s: float, scale: float) -> str:
    """Return one bar; work is parted from its neighbour by a hair."""
    low, high = max(interval.start_s, start_s), min(interval.end_s, end_s)
    if high <= low:
        return ""
    x, width = LEFT + (low - start_s) * scale, (high - low) * scale
    height = THIN if interval.is_wait else BAR
    colour = colour_of(interval.what if interval.is_wait else interval.role)
    kind = "wait" if interval.is_wait else "work"
    says = f"waits for {interval.what}" if interval.is_wait else interval.what
    shown = max(0.4, width if interval.is_wait else width - 0.8)
    return (
        f'<rect class="{kind} {colour}" x="{x:.2f}" y="{y + (ROW - height) / 2:.1f}" '
        f'width="{shown:.2f}" height="{height}"><title>{escape(interval.row)}: {escape(says)}, '
        f"{interval.end_s - interval.start_s:.2f} s</title></rect>"
    )


def time_axis(total_s: float, scale: float, height: float) -> str:
    """Return the seconds below the rows."""
    bottom = height - BOTTOM
    parts = [f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>']
    for value in ticks(0.0, total_s, 10):
        x = LEFT + value * scale
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}"')
        parts.append(f' text-anchor="middle">{value:g} s</text>')
    return "".join(parts)


def legend(intervals: Sequence[Interval]) -> str:
    """Return the colours of the roles that are there."""
    roles = {interval.role for interval in intervals}
    return "".join(
        f'<span class="key"><i class="swatch c{number}"></i>{escape(role)}</span>'
        for role, number in COLOURS.items()
        if role in roles
    )


def figure(title: str, keys: str, svg: str, note: str) -> str:
    """Return a chart as the page's other charts are."""
    note_text = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<div class="legend">{keys}</div>{svg}{note_text}</figure>'
    )
