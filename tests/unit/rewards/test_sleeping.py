"""The sleeping twin: its scores are those of the clip, its failures those it is told to have."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rlvid.config.rewards import ScorerConfig
from rlvid.records import Prompt
from rlvid.rewards.registry import open_scorer
from rlvid.rewards.scoring import ScoreItem, open_scorer_worker

PROMPTS = [Prompt(prompt_id="p", text="a red ball")]


def scores(videos: Tensor, **config: object) -> list[float]:
    scorer = open_scorer(ScorerConfig(use="sleeping", config=config), "rewards.scorers.0")
    found: Tensor = scorer.score(videos, PROMPTS * len(videos))  # type: ignore[union-attr]
    return found.tolist()


def clips(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_a_score_is_that_of_the_clip_wherever_and_with_whomever_it_is_scored() -> None:
    """A run that lost a replica must be able to end with the very same rewards."""
    videos = clips(16)
    together = scores(videos)
    alone = [scores(video[None])[0] for video in reversed(videos)]
    assert together == alone[::-1]
    assert len(set(together)) == 16
    assert all(0.0 <= value < 1.0 for value in together)


def test_a_clip_or_a_call_takes_its_time() -> None:
    started = time.perf_counter()
    scores(clips(3), score_s=0.1, per="clip")
    took = time.perf_counter() - started
    assert took >= 0.3
    started = time.perf_counter()
    scores(clips(3), score_s=0.1, per="call")
    assert 0.1 <= time.perf_counter() - started < took


def test_a_share_of_clips_is_nan_and_always_the_same_ones() -> None:
    nan = torch.tensor(scores(clips(400), nan_frac=0.25)).isnan()
    assert 60 <= int(nan.sum()) <= 140
    assert torch.equal(nan, torch.tensor(scores(clips(400), nan_frac=0.25)).isnan())


def values(frames: Tensor, config: ScorerConfig) -> Sequence[float | None]:
    worker = open_scorer_worker(config, 0)
    array = (frames * 255).byte().permute(0, 1, 3, 4, 2).contiguous().numpy()
    items = [
        ScoreItem(item_id=(1, row), prompt=PROMPTS[0], source=0, row=row)
        for row in range(len(array))
    ]
    return [result.value for result in worker.score(items, [array], fps=8)]


def test_what_was_made_to_fail_may_succeed_at_the_next_attempt() -> None:
    """The batch raises, its clips are tried one by one, and half of those raise as well."""
    config = ScorerConfig(use="sleeping", config={"raise_frac": 0.5})
    found = values(clips(64), config)
    failed = sum(value is None for value in found)
    assert 16 <= failed <= 48
    calm = values(clips(64), ScorerConfig(use="sleeping"))
    assert all(value in (None, right) for value, right in zip(found, calm, strict=True))


def test_a_rate_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rewards\.scorers\.0\.config\.nan_frac"):
        scores(clips(1), nan_frac=1.5)
