"""Watches a training run for reward hacking: remembers the start, compares, and raises alarms.

Held by the driver. What it remembers is JSON and lies in the checkpoint, so a resumed run raises
the alarms an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rlvid.config.alarms import AlarmsConfig, EarlyStopConfig
from rlvid.evaluation.correlation import (
    Correlation,
    Scores,
    correlations,
    groups_with_spread,
    upper_limit,
)
from rlvid.evaluation.drift import (
    Base,
    HeldOut,
    base_of,
    changes,
    fallen_judges,
    risen_rewards,
    standing,
)
from rlvid.evaluation.statistics import Interval

Guards = Mapping[str, Sequence[float]]
"""Guard (over_exposure, ...) to its value of every clip; more is worse."""
KINDS = ("judge_drift", "judge_missing", "guard", "anti_correlation", "no_spread")
"""Kinds of alarms; `alarms/<kind>/active` counts those that are on."""
REWARD = "reward"
"""Name of the weighted mean beside the scorers' own names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something that went from sound to suspicious."""

    step: int
    """Steps done."""
    kind: str
    """One of `KINDS`, or early_stop."""
    subject: str
    """Judge, guard or scorers it is about."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one look found."""

    metrics: Mapping[str, float]
    alarms: Sequence[Alarm] = ()
    """New ones; an alarm that stays on is not raised again."""
    is_best: bool = False
    """The judges like this policy more than any before."""
    should_stop: bool = False


@dataclass(slots=True)
class Memory:
    """What must survive a resume."""

    window: list[dict[str, list[list[float | None]]]] = field(default_factory=list)
    """Scores of the last steps, None where missing."""
    bases: dict[str, dict[str, Base]] = field(default_factory=dict)
    """"rollouts" or "heldout" to guard to its base."""
    first: dict[str, dict[tuple[str, int], float]] = field(default_factory=dict)
    """The first held-out evaluation."""
    active: dict[str, str] = field(default_factory=dict)
    """Alarms that are on, "kind subject" to kind."""
    num_falls: int = 0
    """Evaluations in a row with a fallen judge."""
    best: float | None = None
    best_step: int | None = None

    def to_json(self) -> dict[str, Any]:
        first = {
            name: [[prompt_id, index, value] for (prompt_id, index), value in values.items()]
            for name, values in self.first.items()
        }
        bases = {
            where: {name: asdict(base) for name, base in guards.items()}
            for where, guards in self.bases.items()
        }
        return {
            "window": self.window,
            "bases": bases,
            "first": first,
            "active": self.active,
            "num_falls": self.num_falls,
            "best": self.best,
            "best_step": self.best_step,
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Memory:
        return cls(
            window=tree["window"],
            bases={
                where: {name: Base(**base) for name, base in guards.items()}
                for where, guards in tree["bases"].items()
            },
            first={
                name: {(prompt_id, index): value for prompt_id, index, value in values}
                for name, values in tree["first"].items()
            },
            active=tree["active"],
            num_falls=tree["num_falls"],
            best=tree["best"],
            best_step=tree["best_step"],
        )


class Monitor:
    """Looks at each step and each held-out evaluation."""

    def __init__(
        self,
        alarms: AlarmsConfig,
        early_stop: EarlyStopConfig,
        *,
        weights: Mapping[str, float],
        judges: Sequence[str],
        min_std: float,
        memory: Memory | None = None,
    ) -> None:
        """Args:
        weights: scorer to its weight; those with weight are trained on.
        judges: held-out scorers that are not trained on.
        min_std: `algorithm.advantage.min_std`; a group with less has no spread.
        """
        self._config = alarms
        self._early_stop = early_stop
        self._signs = {name: 1.0 if w > 0 else -1.0 for name, w in weights.items() if w}
        self._judges = tuple(judges)
        self._min_std = min_std
        self.memory = memory or Memory()

    def after_step(self, step: int, scores: Scores, guards: Guards) -> Finding:
        """Look at the rollouts of a step.

        Args:
            step: steps done.
            scores: scorer to [P, G], NaN where missing; P is 0 where every group was dropped, and
                then there is nothing to look at.
            guards: of the step's clips; empty where nobody looked.
        """
        if not any(len(values) for values in scores.values()):
            return Finding(metrics=self._counts(), alarms=[])
        window = self.memory.window
        window.append({name: _listed(values) for name, values in scores.items()})
        del window[: -self._config.correlation_window]
        steps = [{name: _array(rows) for name, rows in one.items()} for one in window]
        found = correlations(steps)
        alarms = self._no_spread(step, steps) + self._anti_correlated(step, found)
        alarms += self._guards(step, "rollouts", guards)
        metrics = {name: value for one in found for name, value in one.metrics().items()}
        metrics |= {f"guards/{name}/mean": float(np.mean(v)) for name, v in guards.items()}
        return Finding(metrics=metrics | self._counts(), alarms=alarms)

    def after_heldout(self, step: int, scores: HeldOut, guards: Guards) -> Finding:
        """Look at a held-out evaluation; a scorer's first one is what its later ones are
        compared with. A judge without a score is an alarm: nobody watches meanwhile.

        Args:
            step: steps done.
            scores: scorer, judge or "reward" to its scores of single clips.
        """
        memory, config = self.memory, self._config
        for name, values in scores.items():
            if values:
                memory.first.setdefault(name, dict(values))
        changed = changes(
            memory.first, scores, confidence=config.confidence, num_bootstrap=config.num_bootstrap
        )
        fallen = fallen_judges(changed, self._judges)
        risen = risen_rewards(changed, {REWARD: 1.0, **self._signs})
        alarms = self._missing(step, scores) + self._drift(step, changed, fallen, risen)
        alarms += self._guards(step, "heldout", guards)
        is_best = self._is_best(step, scores)
        memory.num_falls = memory.num_falls + 1 if fallen else 0
        stops = self._early_stop.judge_falls and memory.num_falls >= self._early_stop.patience
        if stops:
            alarms.append(self._stop_alarm(step, fallen))
        metrics = {f"guards/{name}/heldout_mean": float(np.mean(v)) for name, v in guards.items()}
        for name, interval in changed.items():
            metrics[f"heldout/{name}/change"] = interval.mean_difference
            metrics[f"heldout/{name}/change_low"] = interval.low
            metrics[f"heldout/{name}/change_high"] = interval.high
        return Finding(
            metrics=metrics | self._counts(), alarms=alarms, is_best=is_best, should_stop=stops
        )

    def _counts(self) -> dict[str, float]:
        kinds = list(self.memory.active.values())
        return {f"alarms/{kind}/active": float(kinds.count(kind)) for kind in KINDS}

    def _switch(self, is_on: bool, step: int, kind: str, subject: str, text: str) -> list[Alarm]:
        """Note whether an alarm is on; return it when it was off before."""
        key = f"{kind} {subject}"
        was_on = key in self.memory.active
        if is_on:
            self.memory.active[key] = kind
        else:
            self.memory.active.pop(key, None)
        if not is_on or was_on:
            return []
        return [Alarm(step=step, kind=kind, subject=subject, message=text)]

    def _missing(self, step: int, scores: HeldOut) -> list[Alarm]:
        alarms = []
        for judge in self._judges:
            text = (
                f"held-out judge {judge!r} scored no clip: nothing watches for the reward being "
                "gamed. See its errors in rewards/<judge>/errors and in the log"
            )
            alarms += self._switch(not scores.get(judge), step, "judge_missing", judge, text)
        return alarms

    def _drift(
        self,
        step: int,
        changed: Mapping[str, Interval],
        fallen: Sequence[str],
        risen: Sequence[str],
    ) -> list[Alarm]:
        alarms = []
        for judge in self._judges:
            if judge not in changed:
                continue
            now = changed[judge]
            rises = ", ".join(f"{name} {changed[name].mean_difference:+.3f}" for name in risen)
            text = (
                f"held-out judge {judge!r} fell by {-now.mean_difference:.3f} "
                f"({self._config.confidence:.0%} interval {now.low:+.3f} to {now.high:+.3f}) while "
                f"what is trained on rose: {rises}. The reward is likely being gamed: look at the "
                "clips"
            )
            is_on = judge in fallen and bool(risen)
            alarms += self._switch(is_on, step, "judge_drift", judge, text)
        return alarms

    def _guards(self, step: int, where: str, guards: Guards) -> list[Alarm]:
        if not guards:
            return []
        bases = self.memory.bases.setdefault(
            where, {name: base_of(values) for name, values in guards.items()}
        )
        alarms = []
        clips = "training rollouts" if where == "rollouts" else "held-out clips"
        for name, values in guards.items():
            now, limit = float(np.mean(values)), bases[name].limit(self._config.guard_factor)
            text = (
                f"{name} of {clips} is {now:.3f}; the base policy's was {bases[name].mean:.3f} "
                f"+- {bases[name].std:.3f} (limit {limit:.3f})"
            )
            alarms += self._switch(now > limit, step, "guard", f"{name} of {clips}", text)
        return alarms

    def _no_spread(self, step: int, steps: Sequence[Scores]) -> list[Alarm]:
        alarms = []
        for name in self._signs:
            is_flat = not groups_with_spread(steps, name, self._min_std)
            text = (
                f"scorer {name!r} told no two rollouts of a group apart in the last {len(steps)} "
                "steps; its weight trains nothing"
            )
            alarms += self._switch(is_flat, step, "no_spread", name, text)
        return alarms

    def _anti_correlated(self, step: int, found: Sequence[Correlation]) -> list[Alarm]:
        alarms = []
        for pair in found:
            if pair.first not in self._signs or pair.second not in self._signs:
                continue
            value = pair.spearman_in_group * self._signs[pair.first] * self._signs[pair.second]
            limit = upper_limit(value, pair.num_rollouts - pair.num_groups)
            text = (
                f"{pair.first!r} and {pair.second!r} rank the rollouts of a group against each "
                f"other: Spearman {value:+.2f} over {pair.num_rollouts} rollouts, weights' signs "
                "counted in. What one gains the other loses: gate one, or lower its weight"
            )
            is_on = limit < -self._config.anti_correlation
            alarms += self._switch(is_on, step, "anti_correlation", pair.name, text)
        return alarms

    def _is_best(self, step: int, scores: HeldOut) -> bool:
        now = standing(self.memory.first, scores, self._judges)
        if now is None or (self.memory.best is not None and now <= self.memory.best):
            return False
        self.memory.best, self.memory.best_step = now, step
        return True

    def _stop_alarm(self, step: int, fallen: Sequence[str]) -> Alarm:
        return Alarm(
            step=step,
            kind="early_stop",
            subject=", ".join(fallen),
            message=f"held-out judge {', '.join(fallen)} was below its first evaluation "
            f"{self.memory.num_falls} times in a row: the phase ends here with the policy of step "
            f"{self.memory.best_step}",
        )


def _listed(values: Any) -> list[list[float | None]]:
    """[P, G] -> lists, None for NaN, which JSON does not know."""
    return [[None if value != value else float(value) for value in row] for row in values]


def _array(rows: Sequence[Sequence[float | None]]) -> Any:
    return np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=np.float64)
