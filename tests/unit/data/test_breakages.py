"""Every broken clip is broken in the way its name says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlvid.data.tiny_world import all_facts, breakages_for, render_clip
from rlvid.data.tiny_world.breakages import BREAKAGES
from rlvid.data.tiny_world.scene import Scene, sample_scene
from rlvid.data.tiny_world.simulate import Track, simulate

CASES = [(name, motion) for name, item in BREAKAGES.items() for motion in item.motions]
PHYSICS = [case for case in CASES if BREAKAGES[case[0]].kind == "physics"]


def facts_of(motion: str, camera: str = "pans left") -> dict[str, str]:
    words = {"object": "box", "colour": "blue", "motion": motion, "direction": "right"}
    return {**words, "camera": camera}


def broken_track(name: str, motion: str, seed: int) -> tuple[Scene, Track, Track]:
    """Return (scene, true track, broken track)."""
    scene = sample_scene(facts_of(motion), seed)
    track = simulate(scene, 17, 8)
    change = BREAKAGES[name].change_track
    assert change is not None
    return scene, track, change(scene, track, 8, np.random.default_rng(seed))


@pytest.mark.parametrize(("name", "motion"), CASES)
def test_a_breakage_changes_the_clip_visibly_and_repeatably(name: str, motion: str) -> None:
    """At least five frames' worth of the object's 60 pixels by a third of the range."""
    true, broken = (render_clip(facts_of(motion), 3, breakage=item) for item in (None, name))
    changed = (true - broken).abs().amax(dim=1) > 1 / 3
    if name == "flicker":
        assert (true - broken).abs().mean() > 0.1
    elif BREAKAGES[name].kind == "picture":
        assert (true - broken).abs().mean() > 0.01
    else:
        assert int(changed.sum()) > 5 * 20
    assert torch.equal(broken, render_clip(facts_of(motion), 3, breakage=name))
    assert broken.shape == true.shape
    assert 0.0 <= float(broken.min()) <= float(broken.max()) <= 1.0


@pytest.mark.parametrize("facts", all_facts()[::37], ids=lambda facts: facts["motion"])
def test_every_offered_breakage_can_be_rendered(facts: dict[str, str]) -> None:
    clips = [render_clip(facts, 11, breakage=name) for name in breakages_for(facts)]
    assert len(clips) >= 12


@pytest.mark.parametrize("motion", BREAKAGES["reversed_gravity"].motions)
def test_reversed_gravity_accelerates_upwards(motion: str) -> None:
    scene, _, track = broken_track("reversed_gravity", motion, 2)
    acceleration = np.diff(track.positions[1:5, 1], n=2) * 64
    np.testing.assert_allclose(acceleration, -scene.gravity, atol=1e-6)


@pytest.mark.parametrize("motion", BREAKAGES["teleport"].motions)
def test_teleport_jumps_once_and_stays_in_view(motion: str) -> None:
    """Nothing in the true world moves 7 px between frames."""
    for seed in range(5):
        _, true, track = broken_track("teleport", motion, seed)
        steps = np.hypot(*np.diff(track.positions, axis=0).T)
        assert np.hypot(*np.diff(true.positions, axis=0).T).max() < 7.0
        assert (steps >= 9.0).sum() == 1
        assert track.visible.all()


@pytest.mark.parametrize("motion", BREAKAGES["vanish"].motions)
def test_a_vanished_object_is_seen_first_and_gone_for_five_frames_or_more(motion: str) -> None:
    _, _, track = broken_track("vanish", motion, 1)
    assert track.visible[:4].all()
    assert (~track.visible).sum() >= 5


@pytest.mark.parametrize("motion", BREAKAGES["energy_gain"].motions)
def test_energy_gain_adds_energy(motion: str) -> None:
    scene, _, track = broken_track("energy_gain", motion, 1)
    height = scene.rest_y - track.positions[:, 1]
    total = (track.velocities**2).sum(axis=1) / 2 + scene.gravity * height
    assert total[-1] > 1.4 * total[0]


@pytest.mark.parametrize("motion", BREAKAGES["hover"].motions)
def test_hover_stands_still_above_the_ground(motion: str) -> None:
    scene, _, track = broken_track("hover", motion, 1)
    assert np.ptp(track.positions[-5:], axis=0).max() == 0.0
    assert scene.rest_y - track.positions[-1, 1] >= 5.0


def test_shuffle_keeps_the_frames_and_freeze_repeats_them() -> None:
    true, shuffled, frozen = (
        render_clip(facts_of("falls"), 0, breakage=name)
        for name in (None, "shuffle", "freeze_and_jump")
    )
    assert torch.equal(
        true.flatten(1).sum(1).sort().values, shuffled.flatten(1).sum(1).sort().values
    )
    repeats = sum(torch.equal(a, b) for a, b in zip(frozen[:-1], frozen[1:], strict=True))
    assert repeats >= 5


def test_backwards_shows_the_last_frame_first() -> None:
    true, broken = (render_clip(facts_of("falls"), 0, breakage=b) for b in (None, "reversed_time"))
    assert torch.equal(broken, true.flip(0))


def test_sliding_posts_leave_ground_wall_and_object_where_they_are() -> None:
    """Only the light background above the ground may differ, and by the middle frame it is true."""
    facts = facts_of("collides", camera="still")
    true, broken = (render_clip(facts, 0, breakage=b) for b in (None, "sliding_posts"))
    assert torch.equal(broken[:, :, 27:], true[:, :, 27:])
    changed = (true != broken).any(dim=1)
    assert float(true.amin(dim=1)[changed].min()) > 0.6
    assert torch.equal(broken[8], true[8])
    assert int(changed[0].sum()) > 50


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("wrong_colour", "colour"),
        ("wrong_object", "object"),
        ("wrong_direction", "direction"),
        ("wrong_motion", "motion"),
        ("wrong_camera", "camera"),
    ],
)
def test_an_adherence_breakage_changes_its_own_fact_only(name: str, key: str) -> None:
    facts = facts_of("bounces")
    change = BREAKAGES[name].change_facts
    assert change is not None
    other = change(facts, np.random.default_rng(0))
    assert {item for item in facts if facts[item] != other[item]} == {key}


def test_a_breakage_that_cannot_be_seen_is_refused() -> None:
    """A rolling box pressed to the ground shows nothing of its gravity."""
    with pytest.raises(ValueError, match="reversed_gravity.*cannot be seen.*rolls"):
        render_clip(facts_of("rolls"), 0, breakage="reversed_gravity")


def test_an_unknown_or_too_short_breakage_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown name.*'explode'"):
        render_clip(facts_of("rolls"), 0, breakage="explode")
    with pytest.raises(ValueError, match="too short.*13.*got 5"):
        render_clip(facts_of("rolls"), 0, breakage="vanish", num_frames=5)
