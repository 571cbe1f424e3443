"""Seven laws of motion, followed over one object and two."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch

from rlvid.config.rewards import ScorerConfig
from rlvid.data.tiny_world import render_clip
from rlvid.data.tiny_world.collisions import meeting_frame, render_pair, simulate_pair
from rlvid.evaluation.statistics import auc
from rlvid.rewards.base import Reward
from rlvid.rewards.calibration.clip_sets import ClipSet
from rlvid.rewards.calibration.report import REQUIRED_AUC
from rlvid.rewards.critics import laws
from rlvid.rewards.critics.object_tasks import pair_clips
from rlvid.rewards.critics.objects import follow_objects
from rlvid.rewards.critics.physics_laws import LAW_CLAIMS, LAWS, PhysicsLawsCritic
from rlvid.rewards.critics.tracking import to_frames
from rlvid.rewards.registry import open_scorer

FACTS = {
    "object": "ball",
    "colour": "green",
    "motion": "bounces",
    "direction": "right",
    "camera": "still",
}
WORLD = laws.World(fps=8, gravity=48.0, ground_y=27.0)
CLAIMS = [(law, claim) for law, claims in LAW_CLAIMS.items() for claim in claims]


def parts_of(clip: torch.Tensor) -> dict[str, float]:
    return dict(PhysicsLawsCritic(PhysicsLawsCritic.Config()).parts(to_frames(clip)))


@lru_cache(maxsize=64)
def table(breakage: str | None, pairs: bool) -> dict[str, np.ndarray]:
    """[N] values of every law on held-out clips."""
    if pairs:
        clips = pair_clips(breakage, 24, seed=61, split="heldout")
    else:
        clips = ClipSet.draw(breakage, 24, seed=61, split="heldout")
    rows = [parts_of(video) for video in clips.videos]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.slow
@pytest.mark.parametrize(("law", "claim"), CLAIMS)
def test_each_law_alone_sees_what_it_claims(law: str, claim: str) -> None:
    """A product could hide a blind law behind another that happens to answer."""
    pairs = claim.startswith("pair_")
    true, broken = table(None, pairs), table(claim.removeprefix("pair_"), pairs)
    assert auc(true[law], broken[law], num_bootstrap=10).value >= REQUIRED_AUC
    assert auc(true["physics_laws"], broken["physics_laws"], num_bootstrap=10).value >= REQUIRED_AUC


@pytest.mark.parametrize("pairs", [False, True])
def test_true_clips_keep_every_law(pairs: bool) -> None:
    for name, values in table(None, pairs).items():
        assert np.quantile(values, 0.1) > 0.8, name


@pytest.mark.parametrize(
    ("breakage", "law"),
    [
        ("vanish", "permanence"),
        ("split", "unity"),
        ("colour_swap", "identity"),
        ("wrong_gravity", "gravity"),
        ("energy_gain", "energy"),
        ("teleport", "momentum"),
        ("sink", "solidity"),
    ],
)
def test_a_breakage_breaks_its_own_law(breakage: str, law: str) -> None:
    motion = {"sink": "falls"}.get(breakage, "bounces")
    true, broken = (
        parts_of(render_clip({**FACTS, "motion": motion}, 100_007, breakage=name))
        for name in (None, breakage)
    )
    assert true[law] > 0.85
    assert broken[law] < 0.6


@pytest.mark.parametrize(
    ("breakage", "law"),
    [
        ("pass_through", "solidity"),
        ("momentum_gain", "momentum"),
        ("energy_gain", "energy"),
        ("merge_two", "unity"),
        ("swap_colours", "identity"),
    ],
)
def test_what_two_objects_do_to_each_other_is_seen(breakage: str, law: str) -> None:
    assert parts_of(render_pair(100_003, breakage=breakage)[0])[law] < 0.5


def test_two_objects_are_followed_through_their_meeting() -> None:
    """Exact positions: 0.3 px, as for one object."""
    clip, pair = render_pair(11)
    truth = simulate_pair(pair, 17, 8)
    found = follow_objects(to_frames(clip))
    assert len(found.tracks) == 2
    offset = truth[0].camera_offset - truth[0].camera_offset[8]
    for track in found.tracks:
        own = min(truth, key=lambda t: abs(t.positions[0, 0] - track.x[0]))
        seen = track.present & ~track.cut
        apart = track.x[seen] - (own.positions[:, 0] - truth[0].camera_offset + offset)[seen]
        assert np.abs(apart).max() < 0.4
    assert 0 < meeting_frame(truth) < 16


def test_an_object_that_leaves_the_view_has_not_vanished() -> None:
    """Else every clip would have to end with all its objects in the picture."""
    left = [
        found
        for found in (
            follow_objects(to_frames(render_pair(seed, breakage="energy_gain")[0]))
            for seed in range(12)
        )
        if any(track.leaves.any() for track in found.tracks)
    ]
    assert left
    assert min(laws.permanence(found, WORLD) for found in left) > 0.9


def test_flight_measures_gravity_itself() -> None:
    """The estimate, not only its score: 48 px / s^2 within a tenth."""
    clip = follow_objects(to_frames(render_clip({**FACTS, "motion": "flies"}, 5)))
    accelerations = [acceleration for acceleration, _ in laws.flights(clip, WORLD)]
    assert accelerations
    assert accelerations[0] == pytest.approx(48.0, rel=0.1)


def test_the_background_model_finds_a_grey_object() -> None:
    """Objects of the real world are not all saturated."""
    clip = render_clip(FACTS, 5)
    grey = clip.clone()
    is_object = (clip.amax(dim=1) - clip.amin(dim=1)) > 0.2
    for channel in range(3):
        grey[:, channel][is_object] = 0.1
    frames = to_frames(grey)
    assert not follow_objects(frames, "colour").tracks
    found = follow_objects(frames, "background")
    truth = follow_objects(to_frames(clip), "colour").tracks[0]
    assert np.nanmedian(np.abs(found.tracks[0].x - truth.x)) < 0.7


def test_the_scorer_can_be_set_to_one_law() -> None:
    scorer = open_scorer(ScorerConfig(use="physics_laws", config={"law": "gravity"}), "x")
    assert isinstance(scorer, Reward)
    clips = torch.stack([render_clip(FACTS, 3, breakage=b) for b in ("colour_swap", "hover")])
    swapped, hovering = scorer.score(clips, []).tolist()
    assert swapped > 0.85 > hovering
    with pytest.raises(ValueError, match="law"):
        open_scorer(ScorerConfig(use="physics_laws", config={"law": "magnetism"}), "x")


def test_a_view_full_of_one_colour_is_no_object() -> None:
    """A saturated background that holds still would keep every law."""
    red = torch.tensor([0.9, 0.1, 0.1]).view(1, 3, 1, 1).expand(17, 3, 32, 32)
    assert parts_of(red) == dict.fromkeys(("physics_laws", *LAWS), 0.0)
