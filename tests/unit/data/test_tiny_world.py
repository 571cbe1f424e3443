"""The tiny world: words, splits, physics and pixels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from rlvid.data.tiny_world import all_facts, caption, parse, render_clip, split_of, track_of
from rlvid.data.tiny_world.draw import COLOURS
from rlvid.data.tiny_world.grammar import ATTRIBUTES
from rlvid.data.tiny_world.scene import GRAVITY, Scene, sample_scene
from rlvid.data.tiny_world.simulate import Track, simulate

SOME_FACTS = all_facts()[::11]
"""49 combinations; 11 shares no factor with any number of values, so all values occur."""


def facts_of(**changes: str) -> dict[str, str]:
    """Return facts of a red ball that falls to the right, with changes."""
    base = {"object": "ball", "colour": "red", "motion": "falls", "direction": "right"}
    return {**base, "camera": "still", **changes}


def energy(scene: Scene, track: Track) -> np.ndarray:
    """[T] kinetic plus potential energy of mass 1; a ball's turning is left out."""
    height = scene.rest_y - track.positions[:, 1]
    return np.asarray((track.velocities**2).sum(axis=1) / 2 + scene.gravity * height)


def test_every_caption_parses_back_to_its_facts() -> None:
    """Rewards read the facts from the text, so no two facts may share a sentence."""
    for facts in all_facts():
        assert parse(caption(facts)) == facts


@pytest.mark.parametrize("text", ["", "a red ball", "a pink ball falls to the left"])
def test_other_text_parses_to_none(text: str) -> None:
    assert parse(text) is None


def test_unknown_value_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown colour.*pink"):
        caption(facts_of(colour="pink"))


def test_splits_hold_a_fifth_out_and_show_every_value_on_both_sides() -> None:
    """A value that training never shows could not be generalised to."""
    heldout = [facts for facts in all_facts() if split_of(facts) == "heldout"]
    train = [facts for facts in all_facts() if split_of(facts) == "train"]
    assert len(heldout) + len(train) == len(all_facts())
    assert 0.15 < len(heldout) / len(all_facts()) < 0.25
    for key, values in ATTRIBUTES.items():
        for split in (heldout, train):
            assert {facts[key] for facts in split} == set(values)


def test_the_split_is_the_same_in_another_process() -> None:
    """Python's salted hash would pass every test but this one."""
    code = (
        "from rlvid.data.tiny_world.grammar import *;"
        "print(''.join(split_of(f)[0] for f in all_facts()))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert other.stdout.strip() == "".join(split_of(facts)[0] for facts in all_facts())


def test_the_same_arguments_give_the_same_pixels_and_another_seed_others() -> None:
    first = render_clip(facts_of(), 3)
    assert torch.equal(first, render_clip(facts_of(), 3))
    assert not torch.equal(first, render_clip(facts_of(), 4))


def test_clip_has_the_shape_and_range_asked_for() -> None:
    clip = render_clip(facts_of(), 0, num_frames=9, height=48, width=64)
    assert clip.shape == (9, 3, 48, 64)
    assert clip.dtype == torch.float32
    assert 0.0 <= float(clip.min()) < float(clip.max()) <= 1.0


@pytest.mark.parametrize("fps", [8, 24])
@pytest.mark.parametrize("motion", ["falls", "bounces", "flies"])
def test_free_flight_accelerates_by_exactly_gravity(motion: str, fps: int) -> None:
    """Second differences of position are g / fps^2 before the first landing, whatever the fps."""
    facts = facts_of(motion=motion)
    scene = sample_scene(facts, 1)
    track = simulate(scene, 2 * fps + 1, fps)
    # The frame where contact is reported already lies after the impact.
    landing = int(np.argmax(track.ground_contact[1:])) + 1
    flight = track.positions[1:landing]
    acceleration = np.diff(flight, n=2, axis=0) * fps**2
    assert len(acceleration) >= 2
    np.testing.assert_allclose(acceleration[:, 1], GRAVITY, atol=1e-6)
    np.testing.assert_allclose(acceleration[:, 0], 0.0, atol=1e-6)


def test_free_fall_follows_the_parabola_from_the_start() -> None:
    """y = y0 + g t^2 / 2: a plain Euler step would be late by g t dt / 2."""
    scene = sample_scene(facts_of(), 2)
    track = simulate(scene, 6, 8)
    time = np.arange(6) / 8
    expected = scene.position[1] + scene.gravity * time**2 / 2
    np.testing.assert_allclose(track.positions[:, 1], expected, atol=1e-8)


@pytest.mark.parametrize("facts", SOME_FACTS, ids=caption)
def test_energy_never_grows_and_the_object_stays_in_view(facts: Mapping[str, str]) -> None:
    """0.3 %: the solver's push out of the ground lifts the object by hundredths of a pixel."""
    scene = sample_scene(facts, 7)
    track = track_of(facts, 7)
    total = energy(scene, track)
    assert np.diff(total).max() <= 0.003 * total[0]
    assert track.positions[:, 1].max() <= scene.rest_y + 0.2
    left = track.screen_positions[:, 0] - scene.half_width
    assert left.min() > -1.0
    assert (left + 2 * scene.half_width).max() < 33.0


@pytest.mark.parametrize("facts", SOME_FACTS, ids=caption)
def test_the_track_does_what_the_facts_say(facts: Mapping[str, str]) -> None:
    """The caption must be true of the world, not only of the settings it was made from."""
    scene = sample_scene(facts, 5)
    track = track_of(facts, 5)
    sense = 1.0 if facts["direction"] == "right" else -1.0
    assert sense * (track.positions[4, 0] - track.positions[0, 0]) > 1.5
    pan = track.camera_offset[-1] - track.camera_offset[0]
    assert pan == {"still": 0.0, "pans left": -8.0, "pans right": 8.0}[facts["camera"]]
    height = scene.rest_y - track.positions[:, 1]
    if facts["motion"] in ("rolls", "collides"):
        assert track.ground_contact.all()
    else:
        assert height.max() > 6.0
    if facts["motion"] == "collides":
        assert track.wall_contact.any()
        assert sense * track.velocities[-1, 0] < 0
    else:
        assert not track.wall_contact.any()
        assert sense * track.velocities[-1, 0] > 0
    if facts["motion"] == "bounces":
        assert height[np.argmax(track.ground_contact) + 2 :].max() > 3.0


@pytest.mark.parametrize("colour", ATTRIBUTES["colour"])
def test_the_pixel_at_the_tracked_centre_has_the_colour(colour: str) -> None:
    """Ties track, camera and drawing together, with a pan so that a wrong sign fails."""
    facts = facts_of(colour=colour, motion="flies", camera="pans left")
    clip, track = render_clip(facts, 0), track_of(facts, 0)
    for frame, (x, y) in zip(clip, track.screen_positions, strict=True):
        pixel = frame[:, int(y), int(x)] * 255
        torch.testing.assert_close(pixel, torch.tensor(COLOURS[colour]).float(), atol=1, rtol=0)


def test_the_drawn_centre_of_mass_follows_the_track() -> None:
    """Sub-pixel: rendered motion must be measurable to a tenth of a pixel."""
    facts = facts_of(motion="flies", colour="red")
    clip, track = render_clip(facts, 1), track_of(facts, 1)
    weight = (clip[:, 0] - clip[:, 2]).clamp(min=0.05) - 0.05
    grid = torch.arange(32) + 0.5
    x = (weight.sum(1) * grid).sum(1) / weight.sum((1, 2))
    y = (weight.sum(2) * grid).sum(1) / weight.sum((1, 2))
    drawn = torch.stack([x, y], dim=1).numpy()
    np.testing.assert_allclose(drawn, track.positions, atol=0.1)


def test_a_pan_moves_the_background_and_a_still_camera_does_not() -> None:
    """Between first and last frame the sky marks shift by the pan, 8 px to the left."""
    still = render_clip(facts_of(motion="rolls"), 0)[:, :, :10]
    panned = render_clip(facts_of(motion="rolls", camera="pans right"), 0)[:, :, :10]
    assert torch.equal(still[0], still[-1])
    torch.testing.assert_close(panned[0, :, :, 8:], panned[-1, :, :, :-8], atol=0.01, rtol=0)
