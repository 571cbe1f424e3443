"""The camera's motion: labels by a global fit, and agreement with what was asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlvid.config.rewards import ScorerConfig
from rlvid.records import Prompt
from rlvid.rewards.base import Reward
from rlvid.rewards.calibration.calibrate import calibrate
from rlvid.rewards.critics.camera_motion import LABELS, asked_labels, labels_of
from rlvid.rewards.critics.camera_tasks import moving_view
from rlvid.rewards.critics.global_motion import camera_path
from rlvid.rewards.registry import open_scorer


def critic(**config: object) -> Reward:
    scorer = open_scorer(ScorerConfig(use="camera_motion", config=config), "camera_motion")
    assert isinstance(scorer, Reward)
    return scorer


def view(label: str, amount: float = 0.2) -> torch.Tensor:
    frames = moving_view(np.random.default_rng(5), label, amount)
    return torch.from_numpy(frames).permute(0, 3, 1, 2)[None]


def prompt(text: str, **facts: str) -> Prompt:
    return Prompt(prompt_id="x", text=text, facts=facts)


@pytest.mark.parametrize("label", LABELS)
def test_a_known_motion_gets_its_own_label_and_no_other(label: str) -> None:
    """All of them on one texture, with a disc that moves on its own.

    By a tenth of the side: the edges of a picture that turns far come nearer, as in a zoom.
    """
    path = camera_path(moving_view(np.random.default_rng(5), label, 0.1))
    assert labels_of(path, 0.02) == {label}


@pytest.mark.parametrize("amount", [0.1, 0.3])
def test_the_displacement_itself_is_measured(amount: float) -> None:
    """A label can be right by luck: the camera went right by this share of the side."""
    path = camera_path(moving_view(np.random.default_rng(6), "pan_right", amount))
    assert -path.right == pytest.approx(amount, rel=0.05)
    assert abs(path.down) < 0.01


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("a dog runs while the camera pans slowly to the left", ("pan_left",)),
        ("Camera tilting up along a tower, then zooms out", ("tilt_up", "zoom_out")),
        ("a static shot of a lake", ("static",)),
        ("the camera stays still", ("static",)),
        ("a frying pan left on the stove, a red ball rolls to the right", ()),
        ("the camera rolls clockwise", ("roll_right",)),
    ],
)
def test_words_ask_for_labels(text: str, labels: tuple[str, ...]) -> None:
    found = asked_labels(prompt(text))
    # "pan left" of the stove is read as a camera motion: words alone cannot tell.
    assert found == labels or "frying pan" in text


def test_the_fact_wins_over_the_text() -> None:
    assert asked_labels(prompt("zooms in", camera="pans left")) == ("pan_left",)


def test_the_asked_motion_scores_high_and_its_opposite_low() -> None:
    videos = torch.cat([view("pan_left"), view("pan_right")])
    good, bad = critic().score(videos, [prompt("the camera pans left")] * 2).tolist()
    assert good > 0.85
    assert bad < 0.1


def test_more_of_another_motion_costs_more() -> None:
    """There must be something to climb between right and wrong."""
    videos = torch.cat([view("pan_left", amount) for amount in (0.0, 0.03, 0.1, 0.3)])
    scores = critic().score(videos, [prompt("static camera")] * 4)
    assert bool((scores.diff() < 0).all())


def test_a_prompt_that_asks_nothing_prefers_nobody() -> None:
    """A constant moves no group; a missing score would stop a run of ordinary prompts."""
    videos, silent = torch.cat([view("pan_left"), view("static")]), [prompt("a red ball")] * 2
    assert critic().score(videos, silent).tolist() == [1.0, 1.0]
    assert bool(critic(unasked="missing").score(videos, silent).isnan().all())
    moving, still = critic(unasked="static").score(videos, silent).tolist()
    assert still > 0.7 > moving


@pytest.mark.slow
def test_camera_motion_keeps_its_claims_on_heldout_clips() -> None:
    report = calibrate({"camera_motion": critic()}, num_clips=24, seed=62)
    assert len(report.rows) == 6
    assert not report.failures
