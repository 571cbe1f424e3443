from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, GroupReward, Reward, RewardError, RewardTimeoutError
from rlvid.rewards.decoding import Frames
from rlvid.rewards.scoring import ItemResult, ScoreItem, ScorerWorker, as_declared
from tests.unit.rewards.scorers import (
    Brightness,
    NeedsWideClips,
    OneForAll,
    Raises,
    RankInGroup,
    SecondIsNan,
)

PROMPT = Prompt(prompt_id="0123456789abcdef", text="a red ball falls to the left")


def brightness() -> Brightness:
    return Brightness(Brightness.Config())


def grey_clips(*levels: int) -> Frames:
    """[G, 5, 8, 8, 3]: one clip of each grey level."""
    return np.stack([np.full((5, 8, 8, 3), level, dtype=np.uint8) for level in levels])


def score(
    scorer: Reward | GroupReward, frames: Frames, *, rows: Sequence[int] | None = None
) -> list[ItemResult]:
    worker = ScorerWorker(scorer, label="mine")
    items = [
        ScoreItem(item_id=(7, row), prompt=PROMPT, source=0, row=row)
        for row in (range(len(frames)) if rows is None else rows)
    ]
    return worker.score(items, [frames], fps=8)


def test_scores_carry_the_ids_of_their_clips() -> None:
    results = score(brightness(), grey_clips(0, 51, 102), rows=[2, 0])
    assert [result.item_id for result in results] == [(7, 2), (7, 0)]
    assert [result.value for result in results] == pytest.approx([0.9, 0.5], abs=1e-6)


def test_a_batch_may_hold_clips_of_several_groups() -> None:
    items = [
        ScoreItem(item_id=(1, 0), prompt=PROMPT, source=1, row=0),
        ScoreItem(item_id=(2, 1), prompt=PROMPT, source=0, row=1),
    ]
    worker = ScorerWorker(brightness(), label="mine")
    results = worker.score(items, [grey_clips(0, 51), grey_clips(102)], fps=8)
    assert [result.value for result in results] == pytest.approx([0.9, 0.7], abs=1e-6)


def test_a_group_reward_sees_the_whole_group() -> None:
    results = score(RankInGroup(), grey_clips(3, 1, 2, 0))
    assert [result.value for result in results] == [3.0, 1.0, 2.0, 0.0]


def test_wrong_shape_stops_and_names_the_scorer() -> None:
    """With four numbers for eight videos nobody can say which video earned what."""
    with pytest.raises(RewardError) as caught:
        score(OneForAll(), grey_clips(*range(8)))
    assert str(caught.value) == (
        "rewards 'mine': returned shape (4,) for 8 videos; "
        "score() must return one number per video, in order."
    )


def test_nan_is_a_verdict_and_no_failure() -> None:
    """Asking again would say the same; only what raised is worth another attempt."""
    results = score(SecondIsNan(), grey_clips(1, 2, 3))
    assert [result.value for result in results] == [1.0, None, 1.0]
    assert (results[1].error, results[1].is_failure) == ("returned nan", False)


def test_an_exception_leaves_every_score_missing_with_its_text() -> None:
    results = score(Raises(), grey_clips(1, 2))
    assert [result.value for result in results] == [None, None]
    assert all(result.is_failure for result in results)
    assert results[0].error == "OSError: the judge's disk is full"


class RaisesOnBlack:
    """Fails on a whole batch for one black clip in it."""

    clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        if bool((videos.amax(dim=(1, 2, 3, 4)) == 0).any()):
            raise ValueError("black")
        return videos.mean(dim=(1, 2, 3, 4))


def test_one_bad_clip_does_not_blank_its_neighbours() -> None:
    results = score(RaisesOnBlack(), grey_clips(51, 0, 102))
    values = [result.value for result in results]
    assert values[1] is None
    assert [values[0], values[2]] == pytest.approx([0.2, 0.4], abs=1e-6)


class Late:
    """Asks somebody who does not answer; counts how often."""

    clip_spec = ClipSpec()
    num_calls = 0

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        self.num_calls += 1
        raise RewardTimeoutError("no answer in 110 s")


def test_a_batch_that_was_late_is_not_asked_again_clip_by_clip() -> None:
    """Each clip may be as late again, and the pool would take the replica for hung."""
    scorer = Late()
    results = score(scorer, grey_clips(1, 2, 3))
    assert scorer.num_calls == 1
    assert all(result.is_failure and "no answer" in result.error for result in results)


def test_a_clip_the_scorer_cannot_take_is_refused_with_both_sides() -> None:
    with pytest.raises(RewardError, match=r"'mine'.*fps 16, width 832, the model makes fps 8, wid"):
        score(NeedsWideClips(), grey_clips(1))


def test_grey_is_rec_709_luma_in_one_channel() -> None:
    clips = np.zeros((1, 1, 1, 1, 3), dtype=np.uint8)
    clips[..., 1] = 255
    handed = as_declared(clips, ClipSpec(colour="grey"))
    assert handed.shape == (1, 1, 1, 1, 1)
    assert float(handed) == pytest.approx(0.7152, abs=1e-6)


def test_value_range_maps_black_and_white() -> None:
    """Models trained on [-1, 1] see half the contrast if handed [0, 1]."""
    clips = np.array([0, 255, 51], dtype=np.uint8).reshape(1, 1, 1, 1, 3)
    handed = as_declared(clips, ClipSpec(value_range=(-1.0, 1.0)))
    assert handed.flatten().tolist() == pytest.approx([-1.0, 1.0, -0.6], abs=1e-6)


def test_scoring_leaves_the_shared_frames_alone() -> None:
    """Every scorer of a node reads the same bytes."""
    frames = grey_clips(1, 2)
    frames.setflags(write=False)
    score(brightness(), frames)
    assert torch.equal(torch.tensor(frames[:, 0, 0, 0, 0]), torch.tensor([1, 2]))
