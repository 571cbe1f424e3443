"""What goes wrong in a virtual run, how often, drawn from a seed."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import yaml
from pydantic import Field, ValidationError, model_validator

from rlvid.config.base import Section


class Fate(StrEnum):
    """What becomes of one attempt."""

    DONE = "done"
    KILLED = "killed"
    """The process dies at some moment of it, which is noticed at once."""
    STUCK = "stuck"
    """The process stops for good; only a deadline notices."""
    ZOMBIE = "zombie"
    """The process stops, and answers long after it was given up."""
    SLOW = "slow"
    RAISES = "raises"
    """The attempt fails, the process lives on."""


class FailureRates(Section):
    """Shares of attempts that fail; 0 everywhere is a world without failures."""

    sample_killed: float = Field(default=0.0, ge=0.0, le=1.0)
    """Of the groups an actor begins."""
    sample_stuck: float = Field(default=0.0, ge=0.0, le=1.0)
    sample_zombie: float = Field(default=0.0, ge=0.0, le=1.0)
    sample_slow: float = Field(default=0.0, ge=0.0, le=1.0)
    sample_raises: float = Field(default=0.0, ge=0.0, le=1.0)
    start_killed: float = Field(default=0.0, ge=0.0, le=1.0)
    """Of the actors that load."""
    publish_refused: float = Field(default=0.0, ge=0.0, le=1.0)
    """Of the publishes an actor takes: damaged on the way, fetched anew."""
    score_killed: float = Field(default=0.0, ge=0.0, le=1.0)
    """Of the groups a reward worker begins; it starts anew and another takes the group."""
    score_stuck: float = Field(default=0.0, ge=0.0, le=1.0)
    """As above, noticed after `reward_deadline_s` of the plan."""
    score_missing: float = Field(default=0.0, ge=0.0, le=1.0)
    """Of the groups: a scorer has no score for a clip; masked, never 0."""
    learner_lost: float = Field(default=0.0, ge=0.0, le=1.0)
    """Of the optimiser steps: a rank dies in it, the gang starts from the last checkpoint."""
    driver_lost: float = Field(default=0.0, ge=0.0, le=1.0)
    """Of the optimiser steps: the driver dies in it."""
    slow_factor: float = Field(default=10.0, ge=1.0)

    @model_validator(mode="after")
    def _check(self) -> FailureRates:
        for stage in ("sample", "score"):
            total = sum(rate for _, rate in self.of(stage))
            if total > 1.0:
                raise ValueError(f"{stage}_*: rates must add up to at most 1, got {total:g}")
        return self

    def of(self, stage: str) -> list[tuple[Fate, float]]:
        """Return fates and rates of the attempts of a stage."""
        rates = [(fate, getattr(self, f"{stage}_{fate.value}", 0.0)) for fate in Fate]
        return [(fate, rate) for fate, rate in rates if rate]

    @property
    def is_none(self) -> bool:
        return not any(rate for name, rate in self.model_dump().items() if name != "slow_factor")


@dataclass(slots=True)
class Injector:
    """Draws fates and counts what it made go wrong."""

    rates: FailureRates
    source: random.Random
    deadly_prompts: frozenset[str] = frozenset()
    """Kill every actor that samples them."""
    dead_actors: frozenset[int] = frozenset()
    """Numbers of actors whose every process dies, for good."""
    counts: Counter[str] = field(default_factory=Counter)
    _of_stage: dict[str, list[tuple[Fate, float]]] = field(default_factory=dict)

    def fate(self, stage: str) -> Fate:
        """Return what becomes of an attempt of "sample" or "score"."""
        fates = self._of_stage.get(stage)
        if fates is None:
            fates = self._of_stage[stage] = self.rates.of(stage)
        if not fates:
            return Fate.DONE
        drawn = self.source.random()
        for fate, rate in fates:
            if drawn < rate:
                self.counts[f"{stage}_{fate.value}"] += 1
                return fate
            drawn -= rate
        return Fate.DONE

    def strikes(self, what: str) -> bool:
        """Return whether a failure of that name happens now."""
        rate = getattr(self.rates, what)
        if not rate or self.source.random() >= rate:
            return False
        self.counts[what] += 1
        return True


def load_rates(path: Path) -> FailureRates:
    """Read a YAML or JSON file of failure rates.

    Raises:
        ValueError: it is missing, or names a failure there is not.
    """
    if not path.is_file():
        raise ValueError(f"--failures: no such file: {path}. Name a YAML file")
    try:
        return FailureRates.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        known = ", ".join(FailureRates.model_fields)
        raise ValueError(f"{path}: {name}: {first['msg']}. Failures are: {known}") from error
