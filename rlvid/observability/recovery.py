"""How much of a run's wall time is in its policy (ETTR), whatever died and was done again.

A step's window is the wall time from the end of the step before it. When a step is done again,
because learner or driver went back to a checkpoint, its earlier window and those of later steps are
not in the policy any more. Neither is the time between a crash and the first window after it, nor
what was stated as lost inside a window. Everything else is:

    ettr = sum of the kept windows, without what was lost in them / wall time since the first start

The definition of RobustRL and of distributed training: the effective share of training time.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWindow:
    """One optimiser step on the wall clock, in Unix seconds."""

    step: int
    """Optimiser steps done at its end."""
    start_s: float
    end_s: float
    lost_s: float = 0.0
    """Part of it that came to nothing, e.g. while a learner gang was started again."""

    @property
    def kept_s(self) -> float:
        return max(0.0, self.end_s - self.start_s - self.lost_s)


class Recovery:
    """Adds up windows as they come, those of earlier drivers first."""

    def __init__(self) -> None:
        self._kept: list[StepWindow] = []
        self._kept_s = 0.0
        self._began_s: float | None = None
        self._now_s = 0.0
        self.has_steps = False
        """Whether any step was ever done, kept or not."""

    def began(self, at_s: float) -> None:
        """Say when a driver began; the first time counts."""
        if self._began_s is None:
            self._began_s = at_s
        self._now_s = max(self._now_s, at_s)

    def back_to(self, step: int) -> None:
        """Say that the policy has `step` steps: windows of later ones do not count."""
        while self._kept and self._kept[-1].step > step:
            self._kept_s -= self._kept.pop().kept_s

    def add(self, window: StepWindow) -> None:
        """Take a step that is done; it replaces what was done of it and after it before."""
        self.began(window.start_s)
        self.back_to(window.step - 1)
        self.has_steps = True
        self._kept.append(window)
        self._kept_s += window.kept_s
        self._now_s = max(self._now_s, window.end_s)

    @property
    def wall_s(self) -> float:
        return 0.0 if self._began_s is None else self._now_s - self._began_s

    @property
    def lost_s(self) -> float:
        """Wall time that is not in the policy."""
        return max(0.0, self.wall_s - self._kept_s)

    @property
    def ettr(self) -> float:
        """Share of wall time that is in the policy; 1 before anything happened."""
        return self._kept_s / self.wall_s if self.wall_s > 0 else 1.0
