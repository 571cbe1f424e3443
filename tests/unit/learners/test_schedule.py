"""The learning rate is a pure function of the step."""

from __future__ import annotations

import pytest

from rlvid.config import OptimizerConfig
from rlvid.learners.schedule import learning_rate


def test_warm_up_is_linear_and_ends_at_the_full_rate() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4)
    rates = [learning_rate(config, step, 100) for step in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_no_step_has_rate_zero() -> None:
    """A step of rate 0 costs a batch and changes nothing."""
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10, decay="cosine")
    assert min(learning_rate(config, step, 50) for step in range(50)) > 0.0


def test_cosine_ends_at_a_tenth_at_the_last_step() -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=10, decay="cosine")
    assert learning_rate(config, 10, 111) == pytest.approx(2.0)
    assert learning_rate(config, 60, 111) == pytest.approx(2.0 * 0.55)
    assert learning_rate(config, 110, 111) == pytest.approx(0.2)


def test_phase_of_one_step_has_a_rate() -> None:
    config = OptimizerConfig(learning_rate=1.0, decay="cosine")
    assert learning_rate(config, 0, 1) == 1.0
