"""From files of any rate, size and container to frames of the wanted ones."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvid.data.clips import ClipShape
from rlvid.data.intake.decode import TimedFrame, is_cut_short, open_video, sniff_container
from rlvid.data.intake.drops import RefusedError
from rlvid.data.intake.normalise import fit, normalise, resample
from tests.unit.data.intake_sets import SHAPE, encoded, mp4, rendered, section

LEVEL = 3.0
"""Of 255: what H.264 at CRF 12 and yuv420p take from a flat grey."""


def grey_steps(num_frames: int) -> torch.Tensor:
    """Return a video whose frame number is its level: 10, 18, 26, ..."""
    levels = (10 + 8 * torch.arange(num_frames)) / 255
    return levels[:, None, None, None].expand(-1, 3, 32, 32)


def levels_of(frames: npt.NDArray[np.uint8]) -> list[int]:
    """Return the frame numbers that `grey_steps` wrote."""
    means = frames.reshape(len(frames), -1).mean(axis=1)
    numbers = np.rint((means - 10) / 8)
    assert np.abs(means - 10 - 8 * numbers).max() < LEVEL
    return [int(number) for number in numbers]


def test_24_fps_become_8_by_every_third_frame() -> None:
    footage = normalise(mp4(grey_steps(24), 24), ClipShape(num_frames=8), section(min_seconds=0.5))
    assert levels_of(footage.frames) == [0, 3, 6, 9, 12, 15, 18, 21]
    assert (footage.fps, footage.seconds) == (24.0, 1.0)


def test_24_fps_become_16_by_two_of_three_frames() -> None:
    """Every other time lies midway between two frames; the earlier is taken, always."""
    shape = ClipShape(num_frames=8, fps=16)
    footage = normalise(mp4(grey_steps(18), 24), shape, section(min_seconds=0.5))
    assert levels_of(footage.frames) == [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16]


def timed(times: list[Fraction]) -> list[TimedFrame]:
    picture = av.VideoFrame(16, 16, "rgb24")
    return [TimedFrame(time, picture) for time in times]


@given(
    gaps=st.lists(st.integers(1, 400), min_size=0, max_size=30),
    fps=st.integers(1, 60),
    source_fps=st.integers(5, 60),
)
@settings(max_examples=200, deadline=None)
def test_every_wanted_time_gets_the_nearest_frame(
    gaps: list[int], fps: int, source_fps: int
) -> None:
    """Of the nearest the earliest, and as many as there are times before the last frame ends."""
    times = [Fraction(0)]
    for gap in gaps:
        times.append(times[-1] + Fraction(gap, 1000))
    chosen = [
        frame.seconds for frame in resample(timed(times), Fraction(fps), Fraction(source_fps))
    ]
    end = times[-1] + Fraction(1, source_fps)
    wanted = [Fraction(k, fps) for k in range(len(chosen))]
    assert chosen == [min(times, key=lambda time: (abs(time - t), time)) for t in wanted]
    assert wanted[-1] < end <= Fraction(len(chosen), fps) or len(chosen) == 1


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mov", "libx264"), ("matroska", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")],
)
def test_containers_differ_by_their_compression_only(container: str, codec: str) -> None:
    video, _ = rendered(0, num_frames=17, fps=8)
    data = encoded(video, 8, container=container, codec=codec, pix_fmt="yuv420p")
    footage = normalise(data, SHAPE, section())
    assert footage.frames.shape == (17, 32, 32, 3)
    expected = video.permute(0, 2, 3, 1).mul(255).numpy()
    assert np.abs(footage.frames - expected).mean() < 12


def test_only_known_first_bytes_are_opened() -> None:
    assert sniff_container(b"\0\0\0\x18ftypmp42") == "mp4"
    assert sniff_container(b"\x1aE\xdf\xa3 and more") == "matroska"
    assert sniff_container(b"RIFF\0\0\0\0AVI LIST") == "avi"
    for data in (b"", b"RIFF\0\0\0\0WAVE", b"#EXTM3U\n", b"v=0\no=-", b"ffconcat version 1.0"):
        assert sniff_container(data) is None
        with (
            pytest.raises(RefusedError, match="unreadable_video: expected MP4"),
            open_video(data),
        ):
            pass


def test_a_file_shorter_than_its_parts_is_known_without_decoding() -> None:
    video, _ = rendered(0, num_frames=17, fps=8)
    avi = encoded(video, 8, container="avi", codec="mpeg4", pix_fmt="yuv420p")
    for data, container in ((mp4(video, 8), "mp4"), (avi, "avi")):
        assert not is_cut_short(data, container)
        assert is_cut_short(data[:-1], container)
    assert not is_cut_short(mp4(video, 8) + b"a tail of no box", "mp4")


def test_a_phone_held_upright_gives_an_upright_picture() -> None:
    """Its video lies on its side, with a matrix for the player: x' = -y, y' = x."""
    video = torch.zeros(17, 3, 32, 64)
    video[:, :, :, :32] = 1.0
    data = mp4(video, 8)
    one, minus_one = b"\0\1\0\0", b"\xff\xff\0\0"
    plain = one + bytes(12) + one + bytes(12) + b"\x40\0\0\0"
    turned = bytes(4) + one + bytes(4) + minus_one + bytes(16) + b"\x40\0\0\0"
    place = data.index(plain, data.index(b"tkhd"))
    data = data[:place] + turned + data[place + len(plain) :]
    shape = ClipShape(num_frames=9, height=64, width=32)
    footage = normalise(data, shape, section())
    assert (footage.height, footage.width) == (64, 32)
    assert footage.frames[0, :30].mean() > 250
    assert footage.frames[0, 34:].mean() < 5


def picture(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return an image whose red is the row and green the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)


def edges(image: npt.NDArray[Any]) -> tuple[int, ...]:
    """Return the first and last row, and the first and last column, of a picture."""
    return (*map(int, image[[0, -1], 0, 0]), *map(int, image[0, [0, -1], 1]))


def test_the_centre_is_cropped_to_the_wanted_aspect() -> None:
    shape = ClipShape(height=32, width=32)
    assert edges(fit(picture(32, 96), shape, section())) == (0, 31, 32, 63)
    assert edges(fit(picture(96, 32), shape, section())) == (32, 63, 0, 31)


def test_pixels_that_are_not_square_count_as_they_are_shown() -> None:
    """32 columns twice as wide as high show a picture of 64; its middle half is 16 of them."""
    image = fit(picture(32, 32), ClipShape(height=32, width=32), section(), Fraction(2))
    assert edges(image) == (0, 31, 8, 23)


def test_shrinking_takes_the_mean_of_the_area() -> None:
    """A board of single black and white pixels becomes grey, not one of the two."""
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    image = np.repeat(board[..., None], 3, axis=-1).astype(np.uint8)
    small = fit(image, ClipShape(height=32, width=32), section())
    assert np.abs(small.astype(float) - 127.5).max() <= 0.5


def test_without_a_crop_another_aspect_is_refused() -> None:
    config = section(crop="none")
    assert fit(picture(64, 64), SHAPE, config).shape == (32, 32, 3)
    with pytest.raises(RefusedError, match="wrong_aspect: expected 32:32 within 1 %, got 66:64"):
        fit(picture(64, 66), SHAPE, config)
