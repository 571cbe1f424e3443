"""What a person sees while a phase runs: a live bar with rate and ETA, and one line a step.

On a terminal the bar stays below the lines; in a file or a CI log there are only lines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

LINE = (
    ("reward", "rollout/reward/mean", ".3f"),
    ("+-", "rollout/reward/std", ".3f"),
    ("held-out", "heldout/reward/mean", ".3f"),
    ("loss", "sft/loss/mean", ".4f"),
    ("loss", "dpo/loss/mean", ".4f"),
    ("pairs right", "dpo/pairs_right/frac", ".0%"),
    ("loss", "reward_model/loss/mean", ".4f"),
    ("pairs right", "reward_model/accuracy/mean", ".0%"),
    ("reward", "enhance/reward/mean", ".3f"),
    ("malformed", "enhance/malformed/frac", ".0%"),
    ("held-out gain", "enhance/heldout_gain/mean", "+.3f"),
    ("loss", "enhance/lesson_loss/mean", ".3f"),
    ("kl", "enhance/kl/mean", ".1e"),
    ("grad", "enhance/grad_norm/total", ".2g"),
    ("clip", "learner/clip/frac", ".1%"),
    ("|ratio-1|", "learner/ratio/max_deviation", ".1e"),
    ("kl", "learner/kl/mean", ".1e"),
    ("grad", "learner/grad_norm/total", ".2g"),
    ("stale", "rollout/staleness/mean", ".1f"),
)
"""Label, metric and format of what a step's line shows, where the step has it."""

STAGES = ("sample", "learn", "step")
"""Stages of the driver whose wall time the line shows."""


class PhaseProgress:
    """Progress of one phase; made by `open_progress`."""

    def __init__(
        self, phase: str, num_steps: int, first_step: int, console: Console, bar: Progress | None
    ) -> None:
        self._phase = phase
        self._num_steps = num_steps
        self._first_step = first_step
        self._console = console
        self._bar = bar
        self._task: TaskID | None = None
        self._began_s = time.monotonic()
        if bar is not None:
            self._task = bar.add_task(phase, total=num_steps, completed=first_step, rate="")

    def step_done(self, step: int, metrics: Mapping[str, float]) -> None:
        """Say that `step` (counted from 0) is done."""
        done = step + 1
        elapsed_s = time.monotonic() - self._began_s
        step_s = elapsed_s / max(1, done - self._first_step)
        left_s = step_s * (self._num_steps - done)
        line = step_line(self._phase, done, self._num_steps, metrics, left_s)
        self._console.print(line, highlight=False, soft_wrap=True)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, rate=rate_text(step_s))

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(f"{self._phase}: {text}", highlight=False, soft_wrap=True)


@contextmanager
def open_progress(
    phase: str, num_steps: int, *, first_step: int = 0, console: Console | None = None
) -> Iterator[PhaseProgress]:
    """Show the progress of a phase for the length of the block.

    Args:
        first_step: steps already done by an earlier attempt; the ETA counts from there.
        console: where to; standard error by default, so that standard output stays clean.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield PhaseProgress(phase, num_steps, first_step, console, None)
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield PhaseProgress(phase, num_steps, first_step, console, bar)


def step_line(
    phase: str, done: int, num_steps: int, metrics: Mapping[str, float], left_s: float
) -> str:
    """Return the line of one step: what it earned, how far the policy moved, where time went."""
    width = len(str(num_steps))
    parts = [f"{phase} {done:>{width}}/{num_steps}"]
    parts += [f"{label} {metrics[name]:{form}}" for label, name, form in LINE if name in metrics]
    seconds = {stage: metrics.get(f"time/{stage}/seconds") for stage in STAGES}
    parts += [f"{stage} {value:.1f}s" for stage, value in seconds.items() if value is not None]
    parts.append(f"ETA {duration_text(left_s)}")
    return "  ".join(parts)


def rate_text(step_s: float) -> str:
    """Return steps a second, or seconds a step when it is slower than that."""
    return f"{step_s:.1f} s/step" if step_s >= 1.0 else f"{1.0 / max(step_s, 1e-9):.1f} step/s"


def duration_text(seconds: float) -> str:
    """Return "42 s", "3 min 05 s" or "2 h 10 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
