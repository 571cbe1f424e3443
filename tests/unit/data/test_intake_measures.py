"""Motion, looks and hashes on pictures whose answer is known."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from rlvid.data.intake.decode import open_video
from rlvid.data.intake.measures import (
    SeenHashes,
    clip_hash,
    colourfulness,
    looks,
    motion,
)
from tests.unit.data.intake_sets import mp4, rendered

Frames = npt.NDArray[np.uint8]


def texture(height: int = 64, width: int = 128) -> Frames:
    """Return soft, coloured blobs: [H, W, 3]."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))


def pan(pixels_per_frame: int, num_frames: int = 9) -> Frames:
    """Return a view of 64 x 64 that slides over the texture."""
    wide = texture(width=64 + pixels_per_frame * num_frames)
    return np.stack([wide[:, k * pixels_per_frame :][:, :64] for k in range(num_frames)])


@pytest.mark.parametrize("pixels", [1, 2, 3])
@pytest.mark.parametrize("fps", [8.0, 16.0])
def test_motion_is_per_cent_of_the_diagonal_per_second(pixels: int, fps: float) -> None:
    """Within a fifth: the flow is cut off at the edge where new picture comes in."""
    expected = 100 * pixels * fps / math.hypot(64, 64)
    assert motion(pan(pixels), fps) == pytest.approx(expected, rel=0.2)


def test_a_still_picture_does_not_move_and_its_size_does_not_matter() -> None:
    still = np.repeat(texture()[None], 5, axis=0)
    assert motion(still, 8) < 0.1
    large = np.stack([cv2.resize(frame, (256, 256)) for frame in pan(2)])
    assert motion(large, 8) == pytest.approx(motion(pan(2), 8), rel=0.15)


def test_colourfulness_is_that_of_the_paper() -> None:
    """Half red, half blue: rg = 255 or 0, yb = 127.5 or -255; the means and spreads by hand."""
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    image[0, :, 0] = image[1, :, 2] = 255
    spread = math.hypot(127.5, 191.25)
    mean = math.hypot(127.5, -63.75)
    assert colourfulness(image) == pytest.approx(spread + 0.3 * mean, rel=1e-5)
    assert colourfulness(np.full((4, 4, 3), 90, dtype=np.uint8)) == 0


def test_each_part_of_the_looks_sees_its_own_fault() -> None:
    good = np.repeat(texture()[None], 2, axis=0)
    grey = np.repeat(good.mean(axis=-1, keepdims=True), 3, axis=-1).astype(np.uint8)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 6) for frame in good])
    flat = (good // 8 + 100).astype(np.uint8)
    best = looks(good)
    assert looks(grey).colourfulness < 0.1 * best.colourfulness
    assert looks(blurred).sharpness < 0.5 * best.sharpness
    assert looks(flat).contrast < 0.2 * best.contrast
    blank = looks(np.full((2, 16, 16, 3), 128, dtype=np.uint8))
    assert blank.aesthetic == 0
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    for measured in (best, looks(noise)):
        assert 0 < measured.aesthetic <= 1


def test_a_copy_of_another_size_light_and_compression_has_the_same_hash() -> None:
    video, _ = rendered(0, num_frames=17, fps=8, height=64, width=64)
    with open_video(mp4(video, 8)) as opened:
        compressed = np.stack([frame.rgb() for frame in opened.frames()])
    frames = video.mul(255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    darker = (frames * 0.9).astype(np.uint8)
    smaller = np.stack([cv2.resize(f, (40, 32), interpolation=cv2.INTER_AREA) for f in frames])
    seen = SeenHashes()
    seen.add(clip_hash(frames), "original")
    for copy in (compressed, darker, smaller):
        assert seen.nearest(clip_hash(copy))[0] <= 2
    assert seen.nearest(clip_hash(frames[:, :, ::-1]))[0] > 10


def test_the_nearest_of_many_hashes_is_found() -> None:
    seen = SeenHashes()
    assert seen.nearest(np.zeros(4, dtype=np.uint64)) == (math.inf, "")
    hashes = np.random.default_rng(0).integers(0, 2**63, (200, 4), dtype=np.uint64)
    for number, clip in enumerate(hashes):
        seen.add(clip, str(number))
    for number in (0, 63, 64, 199):
        changed = hashes[number].copy()
        changed[1] ^= np.uint64(0b111)
        assert seen.nearest(changed) == (0.75, str(number))
