"""What the stages of a run cost: seconds, how they vary, and money.

    file: {"sample_s": 40, "reward_s": {"mean_s": 12, "shape": "lognormal", "cv": 0.4}, ...}

A number alone is a cost that never varies. Costs are of one group where not said otherwise.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from rlvid.config.base import Section

HEAVY_TAIL = 2.5
"""Exponent of the Pareto tail: finite mean and variance, no finite third moment."""


class Cost(Section):
    """Seconds of one piece of work."""

    mean_s: float = Field(ge=0.0)
    shape: Literal["fixed", "lognormal", "heavy_tail"] = "fixed"
    """heavy_tail: Pareto with exponent 2.5, so that one in a thousand takes ten times the mean."""
    cv: float = Field(default=0.3, ge=0.0)
    """Standard deviation over mean, of `lognormal`."""

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        return {"mean_s": value} if isinstance(value, int | float) else value

    def draw(self, source: random.Random) -> float:
        """Return the seconds of one."""
        if self.shape == "fixed" or not self.mean_s:
            return self.mean_s
        if self.shape == "lognormal":
            variance = math.log1p(self.cv**2)
            return self.mean_s * source.lognormvariate(-variance / 2, math.sqrt(variance))
        return self.mean_s * (HEAVY_TAIL - 1) / HEAVY_TAIL * source.paretovariate(HEAVY_TAIL)


class Prices(Section):
    """Money for an hour, in any currency."""

    gpu_hour: float = Field(default=0.0, ge=0.0)
    cpu_hour: float = Field(default=0.0, ge=0.0)


class CostModel(Section):
    """What everything takes."""

    sample_s: Cost = Cost(mean_s=1.0)
    """An actor, one group."""
    decode_s: Cost = Cost(mean_s=0.0)
    """A reward worker, one group: latents to clips."""
    reward_s: Cost = Cost(mean_s=0.5)
    """A reward worker, one group: all scorers."""
    train_s: Cost = Cost(mean_s=1.0)
    """All learner ranks together, one group: forward and backward."""
    update_s: Cost = Cost(mean_s=0.0)
    """The learner, one step: optimiser, average of parameters."""
    gather_s: Cost = Cost(mean_s=0.0)
    """The learner, one publish: it rests while buckets are gathered."""
    push_s: Cost = Cost(mean_s=0.1)
    """One actor, one publish, beside its sampling: transport, copy, digests."""
    swap_s: Cost = Cost(mean_s=0.0)
    """One actor, one publish, between two groups."""
    start_s: Cost = Cost(mean_s=10.0)
    """A rollout actor until it has loaded its model."""
    learner_start_s: Cost = Cost(mean_s=10.0)
    """The learner gang until it has loaded a checkpoint."""
    driver_start_s: Cost = Cost(mean_s=5.0)
    """The driver, started again after it died; its actors and learner start anew with it."""
    checkpoint_s: Cost = Cost(mean_s=0.0)
    """The learner rests."""
    prices: Prices = Prices()


def load_costs(path: Path) -> CostModel:
    """Read a YAML or JSON file of costs.

    Raises:
        ValueError: it is missing, or names a cost there is not.
    """
    if not path.is_file():
        raise ValueError(f"--costs: no such file: {path}. Name a YAML file, or a run's folder")
    return parse_costs(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, str(path))


def parse_costs(tree: Any, where: str) -> CostModel:
    """Check a tree of costs.

    Raises:
        ValueError: a cost is unknown or no cost.
    """
    try:
        return CostModel.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        known = ", ".join(CostModel.model_fields)
        raise ValueError(f"{where}: {name}: {first['msg']}. Costs are: {known}") from error
