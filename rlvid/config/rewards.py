"""The `rewards` section: scorers, their weights and the pool that serves them."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from rlvid.config.base import Section


class ScorerConfig(Section):
    """One scorer."""

    use: str
    """Short name from `rlvid rewards list`, or `package.module:Class`."""
    name: str = ""
    """Name in metrics and errors; `use` when empty."""
    weight: float = 1.0
    """In the reward; 0 scores without training on it."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of the scorer's own `Config`."""

    @property
    def label(self) -> str:
        return self.name or self.use


class RewardsConfig(Section):
    """The reward pool."""

    scorers: tuple[ScorerConfig, ...] = (
        ScorerConfig(use="adherence"),
        ScorerConfig(use="physics"),
        ScorerConfig(use="realism"),
    )
    num_replicas: int = Field(default=1, ge=1)
    """Pool actors; each decodes a group once and runs every scorer on the shared clip."""
    num_cpus: float = Field(default=1.0, gt=0.0)
    num_gpus: float = Field(default=0.0, ge=0.0)
    deadline_s: float = Field(default=120.0, gt=0.0)
    """Seconds one group may take to be scored."""
    max_missing_frac: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of missing scores of one scorer in a step above which the run stops."""

    @model_validator(mode="after")
    def _check(self) -> RewardsConfig:
        labels = [scorer.label for scorer in self.scorers]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"scorer name {label!r} appears twice; set `name` on one of them")
        if self.scorers and not any(scorer.weight for scorer in self.scorers):
            raise ValueError("every scorer has weight 0; give at least one a weight")
        return self
