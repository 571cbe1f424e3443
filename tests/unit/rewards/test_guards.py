"""The four guards: each rises with its own fault and stays low for true clips."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from rlvid.data.tiny_world import breakages_picture, render_clip
from rlvid.rewards.calibration.clip_sets import ClipSet
from rlvid.rewards.critics.guards import clip_guards
from rlvid.rewards.critics.tracking import to_frames

FACTS = {
    "object": "ball",
    "colour": "red",
    "motion": "bounces",
    "direction": "right",
    "camera": "pans left",
}
NAMES = ("over_exposure", "stillness", "saturation", "grid")


@pytest.fixture(scope="module")
def true_guards() -> list[dict[str, float]]:
    clips = ClipSet.draw(None, 30, seed=4, split="heldout")
    return [clip_guards(to_frames(video)) for video in clips.videos]


@pytest.mark.parametrize(
    ("guard", "damage"),
    [
        ("over_exposure", breakages_picture.over_expose),
        ("stillness", breakages_picture.hold_still),
        ("saturation", breakages_picture.over_saturate),
        ("grid", breakages_picture.add_grid),
    ],
)
def test_a_guard_rises_above_every_true_clip_with_its_own_fault(
    true_guards: list[dict[str, float]], guard: str, damage: partial[np.ndarray]
) -> None:
    """An alarm compares a run with its own start: the fault must lie outside what is usual."""
    frames = (to_frames(render_clip(FACTS, 3)) * 255).round().astype(np.uint8)
    broken = [clip_guards(damage(frames, np.random.default_rng(n)))[guard] for n in range(5)]
    assert min(broken) > max(guards[guard] for guards in true_guards)


def test_bytes_and_floats_measure_alike() -> None:
    frames = to_frames(render_clip(FACTS, 3))
    floats, ints = clip_guards(frames), clip_guards((frames * 255).round().astype(np.uint8))
    assert tuple(floats) == NAMES
    assert floats == pytest.approx(ints, abs=1e-4)


def test_noise_does_not_hide_that_a_clip_is_still() -> None:
    """A sampler's noise changes every pixel of every frame, and nothing moves."""
    frame = to_frames(render_clip(FACTS, 3))[:1]
    rng = np.random.default_rng(0)
    noisy = np.repeat(frame, 17, axis=0) + 0.04 * rng.standard_normal((17, 32, 32, 3))
    assert clip_guards(noisy)["stillness"] > 0.9


def test_frames_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \[T, H, W, 3\], got \(17, 3, 32, 32\)"):
        clip_guards(np.zeros((17, 3, 32, 32), np.float32))
    with pytest.raises(ValueError, match="expected uint8 or float, got int64"):
        clip_guards(np.zeros((17, 32, 32, 3), np.int64))
