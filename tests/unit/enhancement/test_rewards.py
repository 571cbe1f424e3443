"""What rewrites are worth."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlvid.config.algorithm import AdvantageConfig
from rlvid.config.enhancement import IntentConfig, LengthConfig, RewriteRewardConfig
from rlvid.enhancement.answer import Answer, Enhanced, Failure, Malformed
from rlvid.enhancement.lexicon import load_lexicon
from rlvid.enhancement.rewards import (
    TextScores,
    clip_means,
    length_reward,
    reward_parts,
    rewrite_credit,
    text_scores,
)
from rlvid.records import Prompt

BAD = Malformed(failure=Failure.MISSING_TAG)
NAN = math.nan


def scores_of(text: str, answers: list[Answer], **length: Any) -> TextScores:
    return text_scores(
        [Prompt(prompt_id="1", text=text)],
        [answers],
        length=LengthConfig(**length),
        intent=IntentConfig(),
        lexicon=load_lexicon("english"),
    )


def forms(*is_malformed: bool) -> TextScores:
    """One group, all else equal."""
    bad = torch.tensor([is_malformed])
    good = (~bad).float()
    return TextScores(
        structure=2.0 * good - 1.0,
        length=good,
        intent=good,
        is_malformed=bad,
        failures={},
        num_dropped=0,
        num_contradicted=0,
    )


def advantage_of(text: TextScores, video: dict[str, Tensor], **reward: Any) -> Tensor:
    found = rewrite_credit(
        text,
        video,
        dict.fromkeys(video, 1.0),
        reward=RewriteRewardConfig(**reward),
        advantage=AdvantageConfig(),
    )
    return found.advantage[0]


@pytest.mark.parametrize(
    ("num_words", "expected"),
    [(0, 0.0), (5, 0.0), (6, 0.2), (10, 1.0), (20, 1.0), (25, 0.5), (30, 0.0), (999, 0.0)],
)
def test_length_is_one_inside_the_band_and_falls_outside(num_words: int, expected: float) -> None:
    """Band 10 to 20, falloff a half: 5 words under, or 10 over, are worth nothing."""
    config = LengthConfig(min_words=10, max_words=20)
    assert length_reward(num_words, config) == pytest.approx(expected)


@given(num_words=st.integers(0, 10_000), low=st.integers(1, 100), more=st.integers(0, 100))
@settings(max_examples=200, deadline=None, database=None)
def test_length_stays_in_its_range_and_never_pays_for_going_further_out(
    num_words: int, low: int, more: int
) -> None:
    config = LengthConfig(min_words=low, max_words=low + more)
    reward = length_reward(num_words, config)
    assert 0.0 <= reward <= 1.0
    step = 1 if num_words > config.max_words else -1
    if not low <= num_words <= low + more and num_words + step >= 0:
        assert length_reward(num_words + step, config) <= reward


def test_text_scores_count_what_went_wrong() -> None:
    answers: list[Answer] = [
        Enhanced(reason="r", prompt="a crimson ball on oak"),
        Enhanced(reason="r", prompt="a blue ball"),
        BAD,
    ]
    found = scores_of("a red ball", answers, min_words=4, max_words=9)
    assert found.structure.tolist() == [[1.0, 1.0, -1.0]]
    assert found.length[0].tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert found.intent.tolist() == [[1.0, 0.0, 0.0]]
    assert found.is_malformed.tolist() == [[False, False, True]]
    assert found.failures == {"missing_tag": 1}
    assert (found.num_dropped, found.num_contradicted) == (0, 1)


def test_a_malformed_answer_takes_the_worst_video_of_its_group() -> None:
    """Were it left out for want of a video, breaking the form would cost nothing."""
    parts, weights = reward_parts(
        forms(False, True, False),
        {"aesthetics": torch.tensor([[3.0, NAN, 1.0]]), "jitter": torch.tensor([[4.0, NAN, 9.0]])},
        {"aesthetics": 1.0, "jitter": -0.5, "off": 0.0},
        RewriteRewardConfig(combine="separate", video_weight=2.0),
    )
    assert parts["aesthetics"].tolist() == [[3.0, 1.0, 1.0]]
    assert parts["jitter"].tolist() == [[-4.0, -9.0, -9.0]]
    assert (weights["aesthetics"], weights["jitter"]) == (2.0, 1.0)


def test_sum_makes_one_part_of_the_scorers() -> None:
    """3 - 0.5 * 4 = 1 and 1 - 0.5 * 9 = -3.5."""
    parts, weights = reward_parts(
        forms(False, False),
        {"aesthetics": torch.tensor([[3.0, 1.0]]), "jitter": torch.tensor([[4.0, 9.0]])},
        {"aesthetics": 1.0, "jitter": -0.5},
        RewriteRewardConfig(video_weight=2.0),
    )
    assert parts["video"].tolist() == [[1.0, -3.5]]
    assert weights["video"] == 2.0
    assert set(parts) == {"video", "structure", "length", "intent"}


def test_parts_are_normalised_in_their_group_before_they_are_summed() -> None:
    """Video scores 0 and 1000 and a structure of -1 and 1 count the same: both become -1 and 1."""
    video = {"aesthetics": torch.tensor([[1000.0, 0.0, 1000.0, 0.0]])}
    text = forms(False, False, False, False)
    spread = TextScores(
        structure=torch.tensor([[1.0, 1.0, -1.0, -1.0]]),
        length=text.length,
        intent=text.intent,
        is_malformed=text.is_malformed,
        failures={},
        num_dropped=0,
        num_contradicted=0,
    )
    assert advantage_of(spread, video).tolist() == pytest.approx([2.0, 0.0, 0.0, -2.0])


def test_a_scorer_that_failed_masks_a_rewrite_and_says_nothing_of_it() -> None:
    text = forms(False, False, True, False)
    video = {"aesthetics": torch.tensor([[1.0, NAN, NAN, 2.0]])}
    found = rewrite_credit(
        text,
        video,
        {"aesthetics": 1.0},
        reward=RewriteRewardConfig(),
        advantage=AdvantageConfig(),
    )
    assert found.trained.tolist() == [[True, False, True, True]]
    assert float(found.advantage[0, 1]) == 0.0


def test_a_group_that_nobody_could_judge_is_dropped() -> None:
    video = {"aesthetics": torch.tensor([[NAN, NAN, NAN]])}
    assert advantage_of(forms(False, False, True), video).tolist() == [0.0, 0.0, 0.0]


def test_a_group_of_malformed_answers_teaches_nothing_by_itself() -> None:
    """They are all as bad; what they must learn comes from groups with a good answer in them."""
    video = {"aesthetics": torch.full((1, 3), NAN)}
    assert advantage_of(forms(True, True, True), video).tolist() == [0.0, 0.0, 0.0]


@given(
    scores=st.lists(st.floats(-100, 100), min_size=4, max_size=4),
    bad=st.lists(st.booleans(), min_size=4, max_size=4),
    weights=st.tuples(*[st.floats(0.125, 8.0)] * 4),
    combine=st.sampled_from(["sum", "separate"]),
)
@settings(max_examples=300, deadline=None, database=None)
def test_no_malformed_answer_is_credited_above_a_well_formed_one(
    scores: list[float], bad: list[bool], weights: tuple[float, ...], combine: str
) -> None:
    video = {
        "one": torch.tensor([[NAN if b else s for s, b in zip(scores, bad, strict=True)]]),
        "two": torch.tensor([[NAN if b else -s for s, b in zip(scores, bad, strict=True)]]),
    }
    advantage = advantage_of(
        forms(*bad),
        video,
        combine=combine,
        video_weight=weights[0],
        structure_weight=weights[1],
        length_weight=weights[2],
        intent_weight=weights[3],
    )
    worst_good = min((float(a) for a, b in zip(advantage, bad, strict=True) if not b), default=9.0)
    best_bad = max((float(a) for a, b in zip(advantage, bad, strict=True) if b), default=-9.0)
    # Equal only where both are clipped to -5.
    assert best_bad < worst_good or best_bad == worst_good == -5.0 or not any(advantage)


def test_clips_are_averaged_and_one_that_is_missing_leaves_the_rewrite_unjudged() -> None:
    scores = {"a": torch.tensor([[1.0, 2.0], [3.0, NAN]])}
    table = clip_means(scores, [(0, 1), (1, 0)], (2, 2))["a"]
    torch.testing.assert_close(table, torch.tensor([[NAN, 1.5], [NAN, NAN]]), equal_nan=True)
    with pytest.raises(ValueError, match="expected 1 rows"):
        clip_means(scores, [(0, 0)], (2, 2))


def test_a_scorer_may_not_have_the_name_of_a_part() -> None:
    with pytest.raises(ValueError, match="named 'length'"):
        reward_parts(
            forms(False), {"length": torch.zeros(1, 1)}, {"length": 1.0}, RewriteRewardConfig()
        )
