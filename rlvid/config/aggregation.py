"""The `rewards.aggregation` section: how the scores of several scorers become one reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from rlvid.config.base import Section


class GateConfig(Section):
    """Where one scorer fails, others may not earn.

    For rollouts whose score of `scorer` is less than `below`, the score of each name in `caps` is
    min(score, cap). A rollout without the gate's score is masked.
    """

    scorer: str
    """Label of the scorer that must pass; weight 0 is allowed: it then only gates."""
    below: float
    """In the units of the scorer; a score of exactly this passes."""
    caps: dict[str, float | None] = Field(min_length=1)
    """Label to the most it may give then, in its own units; null takes the lowest score it gave in
    the rollout's group, so that a failing video is never above a passing one."""


class RunningConfig(Section):
    """Scores in units of their spread over past steps, not over the present group."""

    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Weight of the past; 0.9 remembers about 10 steps, 0 only the present one."""


class AggregationConfig(Section):
    """From scores to what is credited. The default normalises each scorer and sums them."""

    kind: Literal["normalise_then_sum", "weighted_sum", "lexicographic"] = "normalise_then_sum"
    """normalise_then_sum: each scorer is normalised in its groups, then summed with its weight;
    weighted_sum: raw scores are summed, then normalised; lexicographic: `order` decides."""
    gates: tuple[GateConfig, ...] = ()
    """All look at the scores as given, so their order does not matter."""
    curriculum: dict[str, tuple[tuple[int, float], ...]] = Field(default_factory=dict)
    """Label to [[step, factor], ...]: the scorer's weight is multiplied by the factor, linear
    between the steps given and constant before the first and after the last. Steps count from 0."""
    order: tuple[str, ...] = ()
    """Of `lexicographic`: all weighted scorers, the most important first."""
    tolerance: dict[str, float] = Field(default_factory=dict)
    """Of `lexicographic`: label to the difference up to which two scores are equal; 0 if absent."""
    running: RunningConfig | None = None
    """Normalise by running statistics. Needs kind weighted_sum, or algorithm.advantage.std none:
    else the std of the present group takes the scale out again."""

    @model_validator(mode="after")
    def _check(self) -> AggregationConfig:
        is_lexicographic = self.kind == "lexicographic"
        if is_lexicographic != bool(self.order):
            raise ValueError(
                f"kind {self.kind!r} with order {list(self.order)}: kind lexicographic needs an "
                "order of the scorers, and only that kind"
            )
        if self.tolerance and not is_lexicographic:
            raise ValueError(f"tolerance: only kind lexicographic has one, got kind {self.kind!r}")
        if is_lexicographic and (self.running or self.curriculum):
            raise ValueError(
                "kind lexicographic compares ranks: running and curriculum would change nothing; "
                "remove them or take another kind"
            )
        if len(set(self.order)) != len(self.order):
            raise ValueError(f"order: a scorer appears twice in {list(self.order)}")
        for name, tolerance in self.tolerance.items():
            if tolerance < 0.0:
                raise ValueError(f"tolerance.{name}: expected at least 0, got {tolerance:g}")
        for gate in self.gates:
            if gate.scorer in gate.caps:
                raise ValueError(f"gates: {gate.scorer!r} cannot cap itself")
        for name, knots in self.curriculum.items():
            _check_knots(name, knots)
        return self


def check_names(aggregation: AggregationConfig, weights: Mapping[str, float], std: str) -> None:
    """Raise ValueError where the section does not fit the scorers' labels and weights.

    Args:
        std: `algorithm.advantage.std`.
    """
    trained = {name for name, weight in weights.items() if weight}
    for gate in aggregation.gates:
        _require(gate.scorer, set(weights), "gates: scorer")
        for name in gate.caps:
            _require(name, trained, "gates: caps, scorers with weight")
            if weights[name] < 0.0:
                raise ValueError(
                    f"rewards.aggregation.gates: caps of {name!r}: its weight is "
                    f"{weights[name]:g}, so a lower score would be a reward; cap scorers of "
                    "positive weight only"
                )
    for name in aggregation.curriculum:
        _require(name, trained, "curriculum, scorers with weight")
    for name in aggregation.tolerance:
        _require(name, set(aggregation.order), "tolerance, scorers of the order")
    if aggregation.order and set(aggregation.order) != trained:
        raise ValueError(
            f"rewards.aggregation.order: expected every scorer with weight, {sorted(trained)}, "
            f"got {list(aggregation.order)}"
        )
    _check_some_weight(aggregation, trained)
    if aggregation.running and aggregation.kind == "normalise_then_sum" and std != "none":
        raise ValueError(
            f"rewards.aggregation.running: algorithm.advantage.std {std!r} divides by the spread "
            "of the present step, which takes the running one out again; set "
            "algorithm.advantage.std to none, or rewards.aggregation.kind to weighted_sum"
        )


def _check_knots(name: str, knots: tuple[tuple[int, float], ...]) -> None:
    steps = [step for step, _ in knots]
    if not knots or steps != sorted(set(steps)) or steps[0] < 0:
        raise ValueError(
            f"curriculum.{name}: expected [[step, factor], ...] with ascending steps from 0 on, "
            f"got steps {steps}"
        )
    if min(factor for _, factor in knots) < 0.0:
        raise ValueError(f"curriculum.{name}: factors must be at least 0")


def _check_some_weight(aggregation: AggregationConfig, trained: set[str]) -> None:
    """At every step something must be trained on."""
    if trained - set(aggregation.curriculum):
        return
    for step in sorted({s for knots in aggregation.curriculum.values() for s, _ in knots}):
        if not any(factor_at(knots, step) for knots in aggregation.curriculum.values()):
            raise ValueError(
                f"rewards.aggregation.curriculum: at step {step} every weight is 0; keep one above"
            )


def factor_at(knots: tuple[tuple[int, float], ...], step: int) -> float:
    """Return the factor at `step`, linear between knots and constant outside them."""
    if step <= knots[0][0]:
        return knots[0][1]
    for (left, low), (right, high) in zip(knots, knots[1:], strict=False):
        if step <= right:
            return low + (high - low) * (step - left) / (right - left)
    return knots[-1][1]


def _require(name: str, known: set[str], where: str) -> None:
    if name not in known:
        raise ValueError(
            f"rewards.aggregation.{where}: expected one of {sorted(known)}, got {name!r}"
        )
