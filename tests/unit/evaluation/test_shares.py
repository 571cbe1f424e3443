"""A share of a gain, and when there is none to speak of."""

from __future__ import annotations

import numpy as np
import pytest

from rlvid.evaluation.shares import share_of

GROUPS = [prompt for prompt in range(8) for _ in range(2)]
WHOLE = np.linspace(0.1, 0.4, 16)


def test_a_constant_share_has_no_width() -> None:
    share = share_of(0.8 * WHOLE, WHOLE, GROUPS, num_bootstrap=200)
    assert share is not None
    assert (share.value, share.low, share.high) == pytest.approx((0.8, 0.8, 0.8))
    assert share.num_pairs == 16


def test_the_ratio_is_of_the_means_and_not_the_mean_of_ratios() -> None:
    """A clip whose teacher gained nothing would make the latter infinite."""
    share = share_of([0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 2.0], [0, 1, 2, 3], num_bootstrap=500)
    assert share is not None
    assert share.value == 0.5
    assert share.low < 0.5 < share.high


def test_noise_between_prompts_widens_the_interval() -> None:
    """Whole prompts are drawn: two clips of a prompt are no two independent ones."""
    part = WHOLE * np.repeat(np.where(np.arange(8) % 2, 0.2, 1.4), 2)
    by_prompt = share_of(part, WHOLE, GROUPS, num_bootstrap=2000)
    by_clip = share_of(part, WHOLE, list(range(16)), num_bootstrap=2000)
    assert by_prompt is not None
    assert by_clip is not None
    assert by_prompt.high - by_prompt.low > by_clip.high - by_clip.low


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param([-0.1] * 4, id="a loss"),
        pytest.param([1.0, -0.9, 1.0, -0.9], id="a gain that is lost in its noise"),
    ],
)
def test_a_share_of_no_sure_gain_is_none(whole: list[float]) -> None:
    assert share_of([0.1] * 4, whole, [0, 1, 2, 3], num_bootstrap=500) is None


def test_lengths_and_prompts_are_checked() -> None:
    with pytest.raises(ValueError, match="part has 1 clips and whole 2"):
        share_of([1.0], [1.0, 2.0], [0, 1])
    with pytest.raises(ValueError, match="at least 2 prompts, got 1"):
        share_of([1.0, 1.0], [1.0, 2.0], [0, 0])
