"""Cuts between scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rlvid.data.intake import RealClip, find_shots
from tests.unit.data.intake_sets import mp4, outcomes_of, rendered, write_folder

THRESHOLD = 0.3
"""The default of the section."""


def frames(index: int, num_frames: int, *, negative: bool = False) -> npt.NDArray[np.uint8]:
    """Return a clip of the tiny world; the negative is another scene."""
    video, _ = rendered(index, num_frames=num_frames, fps=8)
    video = 1 - video if negative else video
    return video.mul(255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


@pytest.mark.parametrize("index", range(8))
def test_a_cut_is_found_where_it_is_and_nowhere_else(index: int) -> None:
    spliced = np.concatenate(
        [frames(index, 7), frames(index, 10, negative=True), frames(index + 1, 5)]
    )
    assert find_shots(spliced, THRESHOLD) == [(0, 7), (7, 17), (17, 22)]


@pytest.mark.parametrize("place", [0, 1, 8, 15, 16])
def test_a_flash_of_one_frame_is_no_cut(place: int) -> None:
    """At either end of the video it may stand alone: there is nothing to compare it with."""
    video = frames(3, 17)
    video[place] = 255
    shots = find_shots(video, THRESHOLD)
    assert max(stop - start for start, stop in shots) >= 16
    if 0 < place < 16:
        assert shots == [(0, 17)]


def test_a_lasting_change_of_light_is_a_cut_and_a_slow_one_is_not() -> None:
    video = frames(3, 17).astype(np.float32)
    sudden, slow = video.copy(), video * np.linspace(1.0, 0.2, 17)[:, None, None, None]
    sudden[8:] *= 0.2
    assert find_shots(sudden.astype(np.uint8), THRESHOLD) == [(0, 8), (8, 17)]
    assert find_shots(slow.astype(np.uint8), THRESHOLD) == [(0, 17)]


def test_shots_cover_every_video() -> None:
    for num_frames in (1, 2, 3):
        assert find_shots(frames(0, 17)[:num_frames], THRESHOLD) == [(0, num_frames)]
    noise = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    shots = find_shots(noise, 0.01)
    assert [start for start, _ in shots[1:]] == [stop for _, stop in shots[:-1]]
    assert (shots[0][0], shots[-1][1]) == (0, 20)


def test_a_clip_comes_from_the_middle_of_the_longest_shot(tmp_path: Path) -> None:
    """Five frames, then thirteen: nine of those are left when two at either end are cut."""
    first, text = rendered(0, num_frames=15, fps=24)
    second = 1 - rendered(1, num_frames=39, fps=24)[0]
    folder = write_folder(tmp_path, [(mp4(torch.cat([first, second]), 24), text)])
    (clip,) = outcomes_of(folder)
    assert isinstance(clip, RealClip)
    assert clip.measures["num_shots"] == 2
    assert clip.start_s == 7 / 8
    expected = second[6 : 6 + 27 : 3]
    assert float((clip.video - expected).abs().mean()) < 4 / 255
