"""How each step's time was spent, role by role, and how stale its groups were, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from rlvid.observability.time_charts import colour_of, figure
from rlvid.observability.time_section import PhaseTime, StepTime

MAX_BARS = 120
"""Steps drawn one by one; more are averaged in bins."""
SHARES = (460, 150)
"""Width and height of a chart."""


def share_charts(phase: PhaseTime) -> list[str]:
    """Return, role by role, how each step's time was spent over the whole phase."""
    roles = (("learner", "Learner"), ("rollout", "Rollout actors"), ("rewards", "Reward pool"))
    return [chart for role, title in roles if (chart := share_chart(phase.steps, role, title))]


def share_chart(steps: Sequence[StepTime], role: str, title: str) -> str:
    """Return one role's stacked shares; "" when it was never there."""
    steps = [step for step in steps if f"idle/{role}/frac" in step.metrics]
    if not steps:
        return ""
    width, height = SHARES
    left, top, bottom = 38, 8, 28
    high = height - top - bottom
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = top + high * (1 - share)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{width - 8}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">')
        parts.append(f"{share:.0%}</text>")
    bins = binned(steps, MAX_BARS)
    wide = (width - left - 8) / len(bins)
    for number, group in enumerate(bins):
        parts.append(stack(group, role, left + wide * number, wide, top, high))
    ends = ((left, "start", steps[0].step), (width - 8, "end", steps[-1].step))
    for x, anchor, step in ends:
        parts.append(f'<text class="tick" x="{x}" y="{height - 8}" text-anchor="{anchor}">')
        parts.append(f"step {step}</text>")
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
    return figure(title, "", f"{svg}{''.join(parts)}</svg>", "")


def stack(
    steps: Sequence[StepTime], role: str, x: float, wide: float, top: float, high: float
) -> str:
    """Return the bar of some neighbouring steps: work at the bottom, waits above it."""
    first, last = steps[0].step, steps[-1].step
    label = f"step {first}" if first == last else f"steps {first} to {last}"
    width = max(0.5, wide - (0.6 if wide > 3 else 0.0))
    parts, reached = [], 0.0
    for kind, what, share in shares_of(steps, role):
        y = top + high * (1 - reached - share)
        reached += share
        says = "works" if kind == "work" else f"waits for {escape(what)}"
        parts.append(
            f'<rect class="{kind} {colour_of(what)}" x="{x:.2f}" y="{y:.2f}" '
            f'width="{width:.2f}" height="{high * share:.2f}">'
            f"<title>{label}: {says} {share:.1%}</title></rect>"
        )
    return "".join(parts)


def shares_of(steps: Sequence[StepTime], role: str) -> list[tuple[str, str, float]]:
    """Return (work or wait, whom, share of the time) of some steps together, work first."""
    total_s = sum(step.seconds for step in steps) or 1.0

    def mean(name: str, otherwise: float) -> float:
        return sum(s.metrics.get(name, otherwise) * s.seconds for s in steps) / total_s

    prefix = f"idle/{role}/on_"
    names = sorted({name for step in steps for name in step.metrics if name.startswith(prefix)})
    waits = [
        ("wait", name.removeprefix(prefix).removesuffix("_frac"), mean(name, 0.0)) for name in names
    ]
    return [("work", role, 1.0 - mean(f"idle/{role}/frac", 1.0)), *waits]


def binned(steps: Sequence[StepTime], most: int) -> list[Sequence[StepTime]]:
    """Return at most about `most` groups of neighbouring steps."""
    size = -(-len(steps) // most)
    return [steps[first : first + size] for first in range(0, len(steps), size)]


def histogram(counts: Mapping[int, int]) -> str:
    """Return how many groups were how many versions behind; "" when none was counted."""
    if not sum(counts.values()):
        return ""
    width, height = SHARES
    left, top, bottom = 38, 18, 28
    lags = range(max(counts) + 1)
    wide = min(60.0, (width - left - 8) / len(lags))
    most = max(counts.values())
    parts = [f'<path class="axis" d="M{left} {height - bottom}H{width - 8}"/>']
    for lag in lags:
        count = counts.get(lag, 0)
        high = (height - top - bottom) * count / most
        x, y = left + wide * lag + 4, height - bottom - high
        parts.append(
            f'<rect class="work c2" x="{x:.1f}" y="{y:.1f}" width="{wide - 8:.1f}" '
            f'height="{high:.1f}"><title>{count} groups {lag} versions behind</title></rect>'
        )
        centre = x + (wide - 8) / 2
        for text, at in ((str(count), y - 4), (str(lag), height - bottom + 15)):
            parts.append(f'<text class="tick" x="{centre:.1f}" y="{at:.1f}"')
            parts.append(f' text-anchor="middle">{text}</text>')
    parts.append(f'<text class="tick" x="{width - 8}" y="{height - 2}" text-anchor="end">')
    parts.append("versions behind when consumed</text>")
    svg = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Staleness">'
    return figure("Staleness of the groups", "", f"{svg}{''.join(parts)}</svg>", "")
