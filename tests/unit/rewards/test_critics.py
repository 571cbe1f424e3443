from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from rlvid.config.rewards import ScorerConfig
from rlvid.data.tiny_world import BREAKAGES, render_clip, track_of
from rlvid.records import Prompt
from rlvid.rewards.base import Reward
from rlvid.rewards.calibration.calibrate import calibrate
from rlvid.rewards.calibration.clip_sets import ClipSet
from rlvid.rewards.calibration.report import REQUIRED_AUC, CalibrationReport, render
from rlvid.rewards.critics.adherence import AdherenceCritic
from rlvid.rewards.critics.motion_fit import fit_horizontal, fit_vertical
from rlvid.rewards.critics.physics import PhysicsCritic
from rlvid.rewards.critics.realism import RealismCritic
from rlvid.rewards.critics.tracking import to_frames, track
from rlvid.rewards.registry import open_scorer

CRITICS = ("physics", "realism", "adherence")
FACTS = {
    "object": "ball",
    "colour": "green",
    "motion": "bounces",
    "direction": "right",
    "camera": "pans left",
}


def open_critic(name: str) -> Reward:
    scorer = open_scorer(ScorerConfig(use=name), name)
    assert isinstance(scorer, Reward)
    return scorer


@pytest.fixture(scope="module")
def report() -> CalibrationReport:
    scorers = {name: open_critic(name) for name in CRITICS}
    return calibrate(scorers, num_clips=16, seed=77, unclaimed=True)


@pytest.fixture(scope="module")
def true_clips() -> ClipSet:
    return ClipSet.draw(None, 24, seed=78, split="heldout")


def blurred(clips: torch.Tensor, sigma: float) -> torch.Tensor:
    frames = [[cv2.GaussianBlur(f, (0, 0), sigma) for f in to_frames(clip)] for clip in clips]
    return torch.from_numpy(np.array(frames)).permute(0, 1, 4, 2, 3).contiguous()


@pytest.mark.parametrize(
    ("name", "breakage"),
    [(c.__name__.removesuffix("Critic").lower(), b)
     for c in (PhysicsCritic, RealismCritic, AdherenceCritic) for b in c.CLAIMS],
)  # fmt: skip
def test_critic_sees_what_it_claims(report: CalibrationReport, name: str, breakage: str) -> None:
    """On held-out captions and seeds that nobody tuned on."""
    (row,) = [r for r in report.rows if (r.scorer, r.breakage) == (name, breakage)]
    assert row.is_claimed
    assert row.auc >= REQUIRED_AUC


@pytest.mark.parametrize("breakage", ["wrong_colour", "wrong_object"])
def test_physics_does_not_care_about_looks(report: CalibrationReport, breakage: str) -> None:
    """A critic that reacts to everything would pass the test above without seeing physics."""
    (row,) = [r for r in report.rows if (r.scorer, r.breakage) == ("physics", breakage)]
    assert row.low < 0.5 < row.high or abs(row.auc - 0.5) < 0.15


@pytest.mark.parametrize("name", CRITICS)
def test_blur_costs_some_of_the_score_and_not_all(name: str, true_clips: ClipSet) -> None:
    """A young policy draws blurred clips; a score that is 0 for all of them teaches nothing."""
    critic = open_critic(name)
    sharp = true_clips.scores(critic).mean()
    soft = critic.score(blurred(true_clips.videos, 1.5), true_clips.prompts).mean()
    assert 0.6 * sharp < soft <= sharp


@pytest.mark.parametrize("name", CRITICS)
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_an_empty_clip_scores_low_and_finite(name: str, level: float) -> None:
    """Nothing to track must be a low score, not a division by zero."""
    prompt = Prompt(prompt_id="x", text="", facts=FACTS)
    score = open_critic(name).score(torch.full((1, 17, 3, 32, 32), level), [prompt])
    assert 0.0 <= float(score) < 0.5


def test_an_object_that_changes_colour_costs_realism_and_adherence() -> None:
    """Young policies let a green object turn red in mid clip; the mean colour would hide it."""
    facts = {**FACTS, "camera": "still"}
    prompt = Prompt(prompt_id="x", text="", facts=facts)
    steady = render_clip(facts, 5)
    changing = torch.cat([steady[:9], render_clip({**facts, "colour": "red"}, 5)[9:]])
    for name in ("realism", "adherence"):
        good, bad = open_critic(name).score(torch.stack([steady, changing]), [prompt, prompt])
        assert bad < good - 0.05


def test_adherence_refuses_a_prompt_outside_the_world() -> None:
    with pytest.raises(ValueError, match="'a cat' is not a caption of the tiny world"):
        open_critic("adherence").score(
            torch.zeros(1, 17, 3, 32, 32), [Prompt(prompt_id="x", text="a cat")]
        )


def test_world_motion_is_image_motion_plus_pan() -> None:
    """Without the pan a ball that the camera follows would seem to stand still."""
    truth = track_of(FACTS, 5)
    clip = track(to_frames(render_clip(FACTS, 5)))
    offset = truth.camera_offset - truth.camera_offset[8]
    # A fifth of a pixel: edges are drawn with 4 x 4 samples a pixel.
    np.testing.assert_allclose(clip.pan, offset, atol=0.2)
    np.testing.assert_allclose(clip.world[:, 0] - offset, truth.screen_positions[:, 0], atol=0.3)


def test_clips_of_another_size_measure_alike() -> None:
    small, large = (track(to_frames(render_clip(FACTS, 5, height=s, width=s))) for s in (32, 64))
    np.testing.assert_allclose(small.centre, large.centre, atol=0.2)


def test_vertical_fit_finds_throw_and_restitution() -> None:
    times = np.arange(17) / 8
    truth = track_of({**FACTS, "motion": "flies"}, 3)
    heights = truth.positions[:, 1].max() - truth.positions[:, 1]
    fit = fit_vertical(heights, np.ones(17), times, 48.0)
    assert fit.error < 0.1
    assert fit.throw == pytest.approx(-truth.velocities[0, 1], abs=1.0)


def test_horizontal_fit_allows_no_gain_at_a_rebound() -> None:
    """Leaving a wall faster than one came is energy from nothing."""
    times = np.arange(17) / 8
    faster = np.where(times < 1, 8 * times, 8 - 16 * (times - 1))
    slower = np.where(times < 1, 8 * times, 8 - 4 * (times - 1))
    assert fit_horizontal(slower, np.ones(17), times).error < 0.05
    assert fit_horizontal(faster, np.ones(17), times).error > 0.5


def test_report_prints_and_stores_every_row(report: CalibrationReport) -> None:
    assert render(report).row_count == len(report.rows) == len(BREAKAGES) * len(CRITICS)
    assert '"breakage": "hover"' in report.to_json()
