"""How many rollout actors there are, within which bounds they may change, and what they may cost.

Part of the `rollout` section.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from rlvid.config.base import Section


class AutoscaleConfig(Section):
    """Bounds and targets of the number of rollout actors; the start is `rollout.num_actors`."""

    min_actors: int = Field(default=1, ge=1)
    max_actors: int = Field(default=8, ge=1)
    """A local cluster leaves room for so many."""
    cooldown_s: float = Field(default=60.0, gt=0.0)
    """Seconds between two changes; idle shares are measured over them, so a few steps long."""
    learner_idle_frac: float = Field(default=0.1, ge=0.0, lt=1.0)
    """The learner waiting more than this, while groups wait for an actor, asks for more actors."""
    rollout_idle_frac: float = Field(default=0.25, gt=0.0, le=1.0)
    """Actors idle more than this, while the learner waits less than its own share, are too many."""

    @model_validator(mode="after")
    def _check(self) -> AutoscaleConfig:
        if self.max_actors < self.min_actors:
            raise ValueError(
                f"autoscale.max_actors must be at least min_actors, got {self.max_actors} and "
                f"{self.min_actors}"
            )
        return self
