"""The driver's side of the monitor: feeds it steps and evaluations, and says what it found."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlvid.algorithms.score_table import ScoreTable
from rlvid.config import Recipe
from rlvid.evaluation.monitor import Finding, Memory, Monitor
from rlvid.launch.groups import ScoredGroup
from rlvid.launch.heldout import Measurement, independent_judges
from rlvid.observability.progress import PhaseProgress
from rlvid.observability.recorder import Recorder

logger = logging.getLogger(__name__)


class Watch:
    """One phase's monitor, with the places its findings go to."""

    def __init__(
        self, recipe: Recipe, memory: Memory, recorder: Recorder, progress: PhaseProgress
    ) -> None:
        """`memory` is the driver state's; it is changed in place."""
        self._monitor = Monitor(
            recipe.grpo.alarms,
            recipe.grpo.early_stop,
            weights={scorer.label: scorer.weight for scorer in recipe.rewards.scorers},
            judges=independent_judges(recipe),
            min_std=recipe.algorithm.advantage.min_std,
            memory=memory,
        )
        self._recorder = recorder
        self._progress = progress

    def after_step(
        self, step: int, table: ScoreTable, groups: Sequence[ScoredGroup]
    ) -> Mapping[str, float]:
        """Return the metrics of correlations and guards after `step` steps; alarms are raised."""
        scores = {name: values.double().numpy() for name, values in table.values.items()}
        found = self._monitor.after_step(step, scores, guards_of(groups))
        self._raise(found)
        return found.metrics

    def after_heldout(self, step: int, measured: Measurement) -> Finding:
        """Compare a held-out evaluation after `step` steps with the first; alarms are raised."""
        found = self._monitor.after_heldout(
            step, measured.for_monitor(), guards_of(measured.groups)
        )
        self._raise(found)
        return found

    def _raise(self, found: Finding) -> None:
        for alarm in found.alarms:
            logger.warning(
                "alarm step=%d kind=%s subject=%r: %s",
                alarm.step,
                alarm.kind,
                alarm.subject,
                alarm.message,
            )
            self._progress.say(f"ALARM step {alarm.step} {alarm.kind}: {alarm.message}")
            self._recorder.write_alarm(alarm.step, alarm.kind, alarm.subject, alarm.message)


def guards_of(groups: Sequence[ScoredGroup]) -> dict[str, list[float]]:
    """Return each guard's value of every clip of the groups."""
    found: dict[str, list[float]] = {}
    for group in groups:
        for name, values in group.scores.guards.items():
            found.setdefault(name, []).extend(values)
    return found


def correlation_table(metrics: Mapping[str, float]) -> str:
    """Return the correlations of a row of metrics as a Markdown table; "" without any."""
    pairs: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        if name.startswith("correlation/"):
            _, pair, kind = name.split("/")
            pairs.setdefault(pair, {})[kind] = value
    if not pairs:
        return ""
    kinds = ("pearson_in_group", "spearman_in_group", "pearson", "spearman")
    lines = [f"| pair | {' | '.join(kinds)} |", f"|---|{'---|' * len(kinds)}"]
    for pair, values in pairs.items():
        cells = [f"{values[kind]:+.2f}" if kind in values else "-" for kind in kinds]
        lines.append(f"| {pair} | {' | '.join(cells)} |")
    return "\n".join(lines)


def best_folder(phase: Path, step: int) -> Path:
    """Return where the policy of `step` is kept while the judges like it most."""
    return phase / "best" / f"step-{step:06d}"


def drop_all_but_best(phase: Path, best_step: int | None) -> None:
    """Remove policies that are no longer the best; after a checkpoint, which remembers which is."""
    for folder in (phase / "best").glob("step-*"):
        if best_step is None or folder.name.removesuffix("_ema") != f"step-{best_step:06d}":
            shutil.rmtree(folder)
