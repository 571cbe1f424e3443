"""The calibration itself: tasks, grades, missing scores, speed and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, RewardError
from rlvid.rewards.calibration.calibrate import calibrate, run_calibration, spearman
from rlvid.rewards.calibration.clip_sets import ClipSet
from rlvid.rewards.calibration.report import render_all
from rlvid.rewards.calibration.tasks import GRADED_TASKS, TASKS, get_graded_task, get_task
from tests.unit.rewards.judges.fake_vllm import FakeVllm, running


class Luma:
    """Mean luma: falls for dark clips, blind to the rest."""

    CLAIMS = ("pair_vanish_one",)
    GRADED = ("flicker_strength",)
    BLIND_TO = ("nearly everything",)
    clip_spec = ClipSpec(colour="grey", value_range=(-1.0, 1.0))

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        assert videos.shape[2] == 1
        assert float(videos.min()) < 0.0
        return videos.mean(dim=(1, 2, 3, 4))


class MostlyMissing:
    """Right about the clips it judges, but judges few."""

    CLAIMS = ("still",)
    clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        moving = (videos[:, 0] - videos[:, -1]).abs().mean(dim=(1, 2, 3))
        judged = torch.arange(len(videos)) % 4 == 0
        return torch.where(judged, moving, torch.full_like(moving, float("nan")))


def test_a_claim_and_a_grade_that_are_not_kept_fail() -> None:
    """The exit code of `rlvid rewards calibrate` hangs on this."""
    report = calibrate({"luma": Luma()}, num_clips=8, seed=1)
    assert [(row.breakage, row.is_kept) for row in report.rows] == [("pair_vanish_one", False)]
    assert [(row.task, row.is_kept) for row in report.graded] == [("flicker_strength", False)]
    assert len(report.failures) == 2
    assert report.scorers[0].blind_to == ("nearly everything",)
    assert report.scorers[0].clips_per_s > 0
    assert len(render_all(report).renderables) == 3
    assert '"rho"' in report.to_json()


def test_missing_scores_are_counted_and_too_many_keep_no_claim() -> None:
    """A critic that judges only the easy clips would look perfect."""
    report = calibrate({"mostly": MostlyMissing()}, num_clips=8, seed=1)
    (row,) = report.rows
    assert row.auc == 1.0
    assert row.num_missing == 12
    assert report.failures == (row,)


class GradedButMissing:
    """Perfect about the few clips of a graded task that it judges."""

    GRADED = ("flicker_strength",)
    clip_spec = ClipSpec()

    def __init__(self, num_judged: int) -> None:
        self._num_judged = num_judged

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        _, strengths = get_graded_task("flicker_strength")(len(videos), seed=1, split="heldout")
        scores = -strengths.float()
        scores[self._num_judged :] = float("nan")
        return scores


def test_a_grade_on_few_clips_is_not_kept() -> None:
    """Two clips of twenty have a rank correlation of -1 half of the time."""
    (row,) = calibrate({"few": GradedButMissing(2)}, num_clips=20, seed=1).graded
    assert (row.num_clips, row.num_missing, row.is_kept) == (20, 18, False)
    (row,) = calibrate({"most": GradedButMissing(18)}, num_clips=20, seed=1).graded
    assert (row.num_missing, row.is_kept) == (2, True)
    with pytest.raises(ValueError, match="could judge no clip of flicker_strength"):
        calibrate({"none": GradedButMissing(0)}, num_clips=20, seed=1)


class FailsOnDark:
    """Raises on the clips of one side, as a judge does whose answer was no judgement."""

    CLAIMS = ("still",)
    clip_spec = ClipSpec()

    def __init__(self, failing: Sequence[int]) -> None:
        self._failing = failing

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        light = videos.mean(dim=(1, 2, 3, 4))
        if len(videos) > 1:
            self._lights = light
        if len(videos) > 1 or any(torch.equal(light[0], self._lights[n]) for n in self._failing):
            raise RewardError("no judgement")
        return light


def test_a_clip_on_which_a_scorer_fails_is_missing_and_not_the_end() -> None:
    """The pool would ask clip by clip; a calibration of 400 clips must not end at the first."""
    (row,) = calibrate({"fails": FailsOnDark([0, 3])}, num_clips=6, seed=1).rows
    assert row.num_missing == 4
    with pytest.raises(RewardError, match="no judgement"):
        calibrate({"fails": FailsOnDark(range(6))}, num_clips=6, seed=1)


def test_a_server_that_refuses_is_a_reason_to_skip() -> None:
    """`--skip-unready` promises it of scorers that have no server."""
    with running(FakeVllm()) as (server,):  # it asks for a key
        report = run_calibration(["grid", "vlm_judge"], 2, 0, server=server.url, skip_unready=True)
        assert list(report.skipped) == ["vlm_judge"]
        assert "refuses the key" in report.skipped["vlm_judge"]
        with pytest.raises(RewardError, match="refuses the key"):
            run_calibration(["vlm_judge"], 2, 0, server=server.url)


def test_scorers_that_cannot_be_opened_are_named_and_not_dropped() -> None:
    report = run_calibration(["grid", "nowhere.at:All"], 2, 0, skip_unready=True)
    assert list(report.skipped) == ["nowhere.at:All"]
    assert "cannot import" in report.skipped["nowhere.at:All"]
    with pytest.raises(ValueError, match="cannot import"):
        run_calibration(["nowhere.at:All"], 2, 0)


def test_rank_correlation_is_spearmans_with_ties() -> None:
    """Against the formula 1 - 6 sum d^2 / n (n^2 - 1), and a hand-made case with a tie."""
    rng = np.random.default_rng(0)
    first, second = rng.permutation(9).astype(float), rng.permutation(9).astype(float)
    by_formula = 1 - 6 * ((first - second) ** 2).sum() / (9 * 80)
    assert spearman(first, second**3) == pytest.approx(by_formula)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 2.0])) == pytest.approx(
        np.sqrt(3) / 2
    )
    assert spearman(first, np.ones(9)) == 0.0


OWN_TASKS = [name for name in TASKS if "rlvid.rewards.critics" in TASKS[name]]
OWN_GRADED = [name for name in GRADED_TASKS if "rlvid.rewards.critics" in GRADED_TASKS[name]]


@pytest.mark.parametrize("name", OWN_TASKS)
def test_a_task_is_repeatable_and_its_splits_differ(name: str) -> None:
    """Tuning must not see a clip of the report."""
    true, broken = get_task(name)(2, seed=3, split="heldout")
    again = get_task(name)(2, seed=3, split="heldout")
    other = get_task(name)(2, seed=3, split="train")
    assert torch.equal(true.videos, again[0].videos)
    assert torch.equal(broken.videos, again[1].videos)
    assert not torch.equal(true.videos, other[0].videos)
    assert not torch.equal(true.videos, broken.videos)
    assert len(true.prompts) == len(broken.prompts) == 2


@pytest.mark.parametrize("name", OWN_GRADED)
def test_a_graded_task_gives_strengths_of_its_clips(name: str) -> None:
    clips, strengths = get_graded_task(name)(3, seed=3, split="heldout")
    assert clips.videos.shape[0] == len(strengths) == 3
    assert float(clips.videos.min()) >= 0.0
    assert float(clips.videos.max()) <= 1.0
    assert float(strengths.min()) >= 0.0


def test_an_unknown_task_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'camera_pan'"):
        get_task("camera_pam")


def test_clips_at_another_rate_than_the_scorer_takes_are_refused() -> None:
    """Gravity in frames depends on the rate: a wrong one would look like broken physics."""
    clips = ClipSet.draw(None, 2, seed=0, split="train")

    class Fast(Luma):
        clip_spec = ClipSpec(fps=24)

    with pytest.raises(ValueError, match="takes clips at 24 fps, the task has 8"):
        clips.scores(Fast())
