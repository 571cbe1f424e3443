from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.judges.bias import shuffled, time_report, yes_bias_report
from rlvid.rewards.judges.scorers import VlmJudge
from tests.unit.rewards.judges.fake_vllm import FakeVllm, running

PROMPT = Prompt(prompt_id="p", text="a red ball falls to the left while the camera stays still")


class Rises:
    """Rewards what gets brighter with time."""

    clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        light = videos.mean(dim=(2, 3, 4))
        return (light * torch.arange(light.shape[1])).sum(1) / light.sum(1)


class Mean:
    """Sees no order."""

    clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return videos.double().mean(dim=(1, 2, 3, 4)).float()


def ramps(count: int) -> Tensor:
    values = (
        torch.linspace(0, 1, 9)[None, :, None, None, None]
        * torch.linspace(0.9, 1.0, count)[:, None, None, None, None]
    )
    return values.expand(count, 9, 3, 4, 4).clone()


def test_every_frame_moves_and_none_is_lost() -> None:
    """A shuffle that leaves half of the frames in place would find no judge blind."""
    videos = ramps(6)
    moved = shuffled(videos, seed=0)
    assert torch.equal(moved.sort(dim=1).values, videos)
    assert not bool((moved == videos)[:, :, 0, 0, 0].any())
    assert not torch.equal(moved[0] / moved[0].max(), moved[1] / moved[1].max())
    assert torch.equal(moved, shuffled(videos, seed=0))


def test_a_scorer_that_sees_time_is_told_from_one_that_does_not() -> None:
    videos, prompts = ramps(12), [PROMPT] * 12
    sees = time_report(Rises(), videos, prompts, seed=0)
    blind = time_report(Mean(), videos, prompts, seed=0)
    assert sees.auc == pytest.approx(1.0)
    assert blind.auc == pytest.approx(0.5, abs=0.1)
    assert blind.changed == pytest.approx(0.0, abs=1e-6)


def test_a_judge_that_always_says_yes_has_bias_one() -> None:
    """And one that reads the negation has none."""
    with running(FakeVllm(masses=lambda text: {"Yes": 0.9999, "No": 1e-4})) as (server,):
        config = VlmJudge.Config(layout="images", only=("colour", "count"), check_sight=False)
        rows = yes_bias_report(config, [server.endpoint], torch.rand(2, 9, 3, 8, 8), [PROMPT] * 2)
        assert [row.question for row in rows] == ["colour", "count"]
        assert all(row.mean == pytest.approx(1.0, abs=1e-3) for row in rows)
        yes, no = {"Yes": 0.7, "No": 0.3}, {"Yes": 0.3, "No": 0.7}
        server.masses = lambda text: no if "not" in text else yes
        rows = yes_bias_report(config, [server.endpoint], torch.rand(2, 9, 3, 8, 8), [PROMPT] * 2)
        assert all(row.mean == pytest.approx(0.0, abs=1e-6) for row in rows)
