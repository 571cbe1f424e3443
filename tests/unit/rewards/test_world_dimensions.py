"""The tiny world's own dimensions: what true clips score, what a rule sees, what it leaves out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

from rlvid.config.rewards import ScorerConfig
from rlvid.data.tiny_world import all_facts, breakages_for, caption, render_clip, split_of
from rlvid.evaluation.statistics import auc
from rlvid.records import Prompt
from rlvid.rewards.base import GroupReward, Reward
from rlvid.rewards.calibration.clip_sets import HELDOUT_SEEDS, ClipSet
from rlvid.rewards.calibration.report import REQUIRED_AUC
from rlvid.rewards.critics import world_dimensions_sight as sight
from rlvid.rewards.critics.tracking import Frames, TrackedClip, track
from rlvid.rewards.critics.world_dimensions import RULES, WorldDimensionName
from rlvid.rewards.critics.world_dimensions_path import (
    Path,
    events_of,
    heading,
    place,
    turning_frames,
)
from rlvid.rewards.registry import open_scorer

FACTS = {
    "object": "box",
    "colour": "green",
    "motion": "bounces",
    "direction": "right",
    "camera": "pans left",
}
JUDGED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "motion_order": {"motion": ("falls", "bounces", "collides")},
    "dynamic_attribute": {"motion": ("falls", "collides")},
    "multi_view_consistency": {"camera": ("pans left", "pans right")},
}
"""Dimension to the values of the captions that it judges; the others judge all."""
CLAIMS = [(name, claim) for name, rule in RULES.items() for claim in rule.claims]


def open_dimension(name: str) -> Reward:
    scorer = open_scorer(ScorerConfig(use="world_dimension", config={"dimension": name}), name)
    assert isinstance(scorer, Reward)
    return scorer


def score(name: str, video: Tensor, **facts: str) -> float:
    """Score one clip that claims to show FACTS with changes."""
    told = {**FACTS, **facts}
    prompt = Prompt(prompt_id="p", text=caption(told), facts=told)
    return float(open_dimension(name).score(video[None], [prompt])[0])


def render(seed: int = HELDOUT_SEEDS, breakage: str | None = None, **facts: str) -> Tensor:
    return render_clip({**FACTS, **facts}, seed, breakage=breakage)


@lru_cache(maxsize=64)
def clips(name: str, breakage: str | None, num_clips: int) -> ClipSet:
    """Held-out captions that the dimension judges."""
    judged = JUDGED.get(name, {})
    known = [
        facts
        for facts in all_facts()
        if split_of(facts) == "heldout"
        and (breakage is None or breakage in breakages_for(facts))
        and all(facts[key] in values for key, values in judged.items())
    ]
    rng = np.random.default_rng([len(known), num_clips, breakage is None])
    chosen = [known[int(n)] for n in rng.integers(len(known), size=num_clips)]
    seeds = [HELDOUT_SEEDS + int(n) for n in rng.integers(90_000, size=num_clips)]
    return ClipSet(
        videos=torch.stack(
            [render_clip(f, s, breakage=breakage) for f, s in zip(chosen, seeds, strict=True)]
        ),
        prompts=tuple(Prompt(prompt_id="p", text=caption(f), facts=f) for f in chosen),
    )


@pytest.mark.parametrize("name", RULES)
def test_true_clips_score_nearly_one(name: str) -> None:
    scores = clips(name if name in JUDGED else "", None, 32).scores(open_dimension(name))
    assert bool(scores.isfinite().all())
    assert float(scores.mean()) >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("name", "claim"), CLAIMS)
def test_each_dimension_sees_what_it_claims(name: str, claim: str) -> None:
    scorer = open_dimension(name)
    group = name if name in JUDGED else ""
    true, broken = (clips(group, item, 100).scores(scorer) for item in (None, claim))
    seen = broken[broken.isfinite()]
    assert len(seen) >= 85
    assert auc(true.numpy(), seen.numpy(), num_bootstrap=10).value >= REQUIRED_AUC


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("motion_order", {"motion": "rolls"}),
        ("motion_order", {"motion": "flies"}),
        ("dynamic_attribute", {"motion": "rolls"}),
        ("dynamic_attribute", {"motion": "flies"}),
        ("dynamic_attribute", {"motion": "bounces"}),
        ("multi_view_consistency", {"camera": "still"}),
    ],
)
def test_a_caption_of_another_kind_is_excluded(name: str, facts: dict[str, str]) -> None:
    """Even where nothing is seen: what a caption cannot ask for is not a fault."""
    assert math.isnan(score(name, render_clip({**FACTS, **facts}, HELDOUT_SEEDS), **facts))
    assert math.isnan(score(name, torch.full((17, 3, 32, 32), 0.9), **facts))


def test_a_clip_too_short_for_the_events_is_excluded() -> None:
    """In a second nothing comes back from the wall, so no clip of it could be judged."""
    facts = {**FACTS, "motion": "collides"}
    video = render_clip(facts, HELDOUT_SEEDS, num_frames=8)
    assert math.isnan(score("motion_order", video, **facts))
    assert math.isnan(score("dynamic_attribute", video, **facts))


@pytest.mark.parametrize("name", ["motion_order", "dynamic_attribute"])
def test_a_clip_without_an_object_has_no_event_and_no_attribute(name: str) -> None:
    assert score(name, torch.full((17, 3, 32, 32), 0.9), motion="falls") == 0.0


@pytest.mark.parametrize("motion", ["falls", "bounces"])
def test_time_reversed_is_another_order(motion: str) -> None:
    for seed in range(HELDOUT_SEEDS, HELDOUT_SEEDS + 8):
        video = render(seed, motion=motion)
        assert score("motion_order", video, motion=motion) == 1.0
        assert score("motion_order", video.flip(0), motion=motion) == 0.0


def test_a_collision_reversed_has_the_same_events() -> None:
    """To the wall and back is its own reverse; that it leaves faster is a matter of mechanics."""
    video = render(motion="collides").flip(0)
    assert score("motion_order", video, motion="collides") == 1.0


@pytest.mark.parametrize("name", ["motion_order", "dynamic_attribute"])
@pytest.mark.parametrize("motion", ["falls", "collides"])
def test_the_direction_is_left_to_its_own_dimension(name: str, motion: str) -> None:
    assert score(name, render(motion=motion), motion=motion, direction="left") == 1.0


def test_an_attribute_is_read_at_the_start_and_at_the_end_alone() -> None:
    """Frames in between in another order change what happens, and not from what to what."""
    video = render(motion="falls")
    order = torch.tensor([0, 1, 2, 3, 12, 5, 10, 4, 8, 6, 11, 7, 9, 13, 14, 15, 16])
    assert score("dynamic_attribute", video[order], motion="falls") == 1.0
    assert score("motion_order", video[order], motion="falls") == 0.0
    unchanged = torch.cat([video[:4]] * 4)
    assert score("dynamic_attribute", unchanged, motion="falls") == 0.0


def test_to_turn_back_before_the_wall_is_not_to_hit_it() -> None:
    video = render(motion="collides", camera="still")
    order = torch.tensor([0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4, 4, 3])
    assert score("motion_order", video[order], motion="collides") == 0.0


def test_a_camera_that_stays_shows_no_second_view() -> None:
    """Excluded as in VBench-2.0; that it should have moved is said by `camera_motion`."""
    video = render(camera="still")
    assert math.isnan(score("multi_view_consistency", video))
    assert score("camera_motion", video) == 0.0


def test_views_are_compared_whatever_moves_before_them() -> None:
    """However many objects there are, and whatever laws they break."""
    assert score("multi_view_consistency", render(breakage="teleport")) > 0.97
    assert score("multi_view_consistency", render(breakage="merge")) > 0.97


def test_posts_that_slide_are_seen_and_cost_more_the_further_they_slide() -> None:
    true, slid = (render(breakage=breakage, motion="rolls") for breakage in (None, "sliding_posts"))
    half = torch.cat([true[:8], slid[8:9], true[9:]])
    values = [score("multi_view_consistency", v, motion="rolls") for v in (true, half, slid)]
    assert values[0] >= values[1] > values[2]
    assert values[2] < 0.9


def test_nine_scorers_track_a_clip_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(frames: Frames) -> TrackedClip:
        calls.append(len(frames))
        return track(frames)

    monkeypatch.setattr(sight, "track", counted)
    video = render(HELDOUT_SEEDS + 77, motion="falls")
    for name in RULES:
        assert score(name, video, motion="falls") > 0.99
    assert calls == [17]


def test_the_latest_clips_are_kept_up_to_the_bytes() -> None:
    """Without a bound an evaluation would keep every clip it ever scored."""
    videos = [render(seed) for seed in range(3)]
    mask_bytes = sight.Sights(0).of(videos[0]).clip.coverage.nbytes
    sights = sight.Sights(2 * mask_bytes)
    first, second = (sights.of(video) for video in videos[:2])
    assert sights.of(videos[0].clone()) is first
    sights.of(videos[2])
    assert len(sights) == 2
    assert sights.of(videos[0]) is first
    again = sights.of(videos[1])
    assert again is not second
    assert np.array_equal(again.clip.pan, second.clip.pan)


def test_a_turn_counts_from_three_pixels_on() -> None:
    assert turning_frames(np.array([9.0, 5.0, 0.0, 2.0, 0.0])) == [0, 2]
    assert turning_frames(np.array([9.0, 5.0, 0.0, 4.0, 0.5])) == [0, 2, 3, 4]
    assert turning_frames(np.array([0.0, np.nan, 1.0, 5.0, np.nan])) == [0, 3]
    assert turning_frames(np.array([1.0, 2.0, 1.0])) == []
    assert turning_frames(np.full(3, np.nan)) == []


def path(heights: list[float], gaps: list[float] | None = None) -> Path:
    return Path(heights=np.array(heights), gaps=None if gaps is None else np.array(gaps), fps=8.0)


def test_events_and_states_of_a_path() -> None:
    bounce = path([8, 4, 0, 4, 6.5, 3, 0, 4])
    assert events_of(bounce) == ("falls", "rebounds", "falls", "rebounds")
    assert events_of(path(bounce.heights[::-1].tolist()))[-1] == "climbs"
    assert events_of(path([8, 8, 6, 2, 0, 1, 0, 0])) == ("falls", "lands")
    hit = path([0.0] * 9, [9, 6, 4, 1, 0.5, 3, 5, 7, 9])
    assert events_of(hit) == ("nears", "touches", "leaves")
    assert (heading(hit, at_end=False), heading(hit, at_end=True)) == (
        "to the wall",
        "from the wall",
    )
    assert place(bounce, at_end=False) == "in the air"
    assert place(bounce, at_end=True) is None
    assert place(hit, at_end=True) == "on the ground"
    assert heading(bounce, at_end=False) is None


def test_an_unknown_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="dimension"):
        open_dimension("thermotics")


def test_diversity_is_that_of_the_world_for_true_clips_and_none_for_copies() -> None:
    scorer = open_scorer(ScorerConfig(use="world_diversity"), "diversity")
    assert isinstance(scorer, GroupReward)
    prompt = Prompt(prompt_id="p", text=caption(FACTS), facts=FACTS)
    true = torch.stack([render(seed) for seed in range(6)])
    assert float(scorer.score_group(true, prompt)[0]) > 0.5
    copies = scorer.score_group(true[:1].repeat(3, 1, 1, 1, 1), prompt)
    assert copies.tolist() == [0.0] * 3
    assert bool(scorer.score_group(true[:1], prompt).isnan().all())


def test_the_table_names_every_dimension_once() -> None:
    assert set(RULES) == set(WorldDimensionName.__args__)  # type: ignore[attr-defined]
