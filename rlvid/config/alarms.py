"""The `grpo.alarms` and `grpo.early_stop` sections: guards against reward hacking."""

from __future__ import annotations

from pydantic import Field, model_validator

from rlvid.config.base import Section, refuse_unread


class AlarmsConfig(Section):
    """When a run says that its reward is being gamed. Alarms only speak; nothing is changed."""

    confidence: float = Field(default=0.99, gt=0.0, lt=1.0)
    """Of the bootstrap interval over held-out prompts that a judge must leave to have fallen. At
    0.99 a judge that did not change raises a false alarm in 1 of 200 evaluations."""
    num_bootstrap: int = Field(default=2000, ge=100)
    guard_factor: float = Field(default=3.0, gt=0.0)
    """A guard (over-exposure, stillness, saturation, grid) alarms when its mean over clips is above
    that of the base policy by this many standard deviations of the base policy's clips. Less makes
    a step's draw of prompts alarm: with 4 groups a step two means differ by 0.7 of them."""
    correlation_window: int = Field(default=10, ge=1)
    """Steps over which correlations between scorers are taken."""
    anti_correlation: float = Field(default=0.3, gt=0.0, le=1.0)
    """Two trained scorers alarm when their rank correlation inside groups is below minus this,
    beyond its noise."""


class EarlyStopConfig(Section):
    """End the phase when a held-out judge falls; the policy is then the best one it saw."""

    judge_falls: bool = False
    """Stop once a judge has been below its first evaluation, beyond its noise
    (`alarms.confidence`), in `patience` evaluations in a row. The phase's policy is then the one
    with the best judge scores, which is kept in the phase's folder as it is found."""
    patience: int = Field(default=2, ge=1)
    """Evaluations, `grpo.evaluate_every` steps apart."""

    @model_validator(mode="after")
    def _check(self) -> EarlyStopConfig:
        if not self.judge_falls:
            refuse_unread(self, ("patience",), "where judge_falls is false")
        return self
