from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlvid.rewards.base import GroupReward, Reward, RewardError
from rlvid.rewards.scoring import RewardWorker
from tests.unit.rewards.scorers import (
    Brightness,
    NeedsWideClips,
    OneForAll,
    Raises,
    RankInGroup,
    SecondIsNan,
    group,
    latents_as_video,
)


def worker(**scorers: Reward | GroupReward) -> RewardWorker:
    return RewardWorker(list(scorers.items()), latents_as_video, fps=8)


def brightness() -> Brightness:
    return Brightness(Brightness.Config())


def test_scores_belong_to_the_rollouts_in_order() -> None:
    sampled = group(group_size=3)
    answer = worker(brightness=brightness()).score_group(sampled)
    expected = [1.0 - abs(float(r.latents.mean()) - 0.5) for r in sampled.rollouts]
    assert [score.index for score in answer.scores] == [0, 1, 2]
    assert [score.value for score in answer.scores] == pytest.approx(expected, abs=1e-6)


def test_a_group_is_decoded_once_for_all_scorers() -> None:
    """Decoding is the dearest part of scoring; each scorer decoding for itself would double it."""
    decoded: list[Tensor] = []

    def decode(latents: Tensor) -> Tensor:
        decoded.append(latents)
        return latents_as_video(latents)

    scorers: list[tuple[str, Reward | GroupReward]] = [
        ("first", brightness()),
        ("second", RankInGroup()),
    ]
    RewardWorker(scorers, decode, fps=8).score_group(group())
    assert len(decoded) == 1


def test_a_group_reward_sees_the_whole_group() -> None:
    answer = worker(rank=RankInGroup()).score_group(group(group_size=4))
    assert sorted(score.value or 0.0 for score in answer.scores) == [0.0, 1.0, 2.0, 3.0]


def test_wrong_shape_stops_and_names_the_scorer() -> None:
    """With four numbers for eight videos nobody can say which video earned what."""
    with pytest.raises(RewardError) as caught:
        worker(adherence=brightness(), aesthetic=OneForAll()).score_group(group(group_size=8))
    assert str(caught.value) == (
        "rewards[1] 'aesthetic': returned shape (4,) for 8 videos; "
        "score() must return one number per video, in order."
    )


def test_nan_is_a_missing_score() -> None:
    answer = worker(judge=SecondIsNan()).score_group(group(group_size=3))
    assert [score.value for score in answer.scores] == [1.0, None, 1.0]
    assert answer.scores[1].error == "returned nan"


def test_an_exception_leaves_its_scores_missing_and_the_others_whole() -> None:
    answer = worker(broken=Raises(), brightness=brightness()).score_group(group(group_size=2))
    values = {name: [s.value for s in answer.scores if s.scorer == name] for name in ("broken",)}
    assert values["broken"] == [None, None]
    assert answer.scores[0].error == "OSError: the judge's disk is full"
    assert all(s.value is not None for s in answer.scores if s.scorer == "brightness")


def test_a_clip_the_scorer_cannot_take_is_refused_with_both_sides() -> None:
    with pytest.raises(RewardError, match=r"fps 16, width 832, the model makes fps 8, width 8"):
        worker(judge=NeedsWideClips()).score_group(group())


def test_clips_for_the_report_are_bytes() -> None:
    clips = worker().clips(group(group_size=2))
    assert clips.dtype == torch.uint8
    assert clips.shape == (2, 5, 3, 8, 8)
