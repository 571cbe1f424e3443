"""Which recipes may train a batch in chunks."""

from __future__ import annotations

import pytest

from rlvid.algorithms.grpo import Grpo
from rlvid.algorithms.streaming import streams
from rlvid.config import AlgorithmConfig
from rlvid.config.aggregation import AggregationConfig, RunningConfig
from rlvid.config.algorithm import AdvantageConfig


class BatchWide:
    """An algorithm that says nothing of its credit."""


class Local(Grpo):
    """One that inherits a promise."""


@pytest.mark.parametrize("std", ["group", "none"])
def test_spread_of_the_group_streams(std: str) -> None:
    algorithm = AlgorithmConfig(advantage=AdvantageConfig.model_validate({"std": std}))
    assert streams(algorithm, AggregationConfig())


@pytest.mark.parametrize("std", ["global", "max_group"])
def test_spread_of_the_batch_does_not(std: str) -> None:
    """A chunk would be divided by its own spread."""
    algorithm = AlgorithmConfig(advantage=AdvantageConfig.model_validate({"std": std}))
    assert not streams(algorithm, AggregationConfig())


def test_selective_kl_does_not() -> None:
    """Rollouts of the whole step are ranked."""
    algorithm = AlgorithmConfig.model_validate(
        {"kl": {"kind": "reference"}, "selective_kl": {"main": "a"}}
    )
    assert not streams(algorithm, AggregationConfig())


def test_running_statistics_do_not() -> None:
    """They take the whole step in before any of it is credited."""
    algorithm = AlgorithmConfig(advantage=AdvantageConfig(std="none"))
    assert not streams(algorithm, AggregationConfig(running=RunningConfig()))


def test_algorithm_that_promises_nothing_does_not() -> None:
    """A wrong guess would train wrong advantages without a sign."""
    here = f"{__name__}:"
    assert not streams(AlgorithmConfig(use=f"{here}BatchWide"), AggregationConfig())
    assert streams(AlgorithmConfig(use=f"{here}Local"), AggregationConfig())


@pytest.mark.parametrize("engine", ["nft", "awm", "dpo"])
def test_engines_on_the_forward_process_stream(engine: str) -> None:
    assert streams(AlgorithmConfig(use=engine), AggregationConfig())
