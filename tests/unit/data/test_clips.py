"""Clip sets and video files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from rlvid.data.clips import ClipShape, TinyWorldClips, open_clips
from rlvid.data.tiny_world import caption, parse, render_clip, split_of
from rlvid.data.video_files import MAX_PIXELS, decode_mp4, probe_mp4, read_mp4, write_mp4

FACTS = {
    "object": "ball",
    "colour": "green",
    "motion": "bounces",
    "direction": "left",
    "camera": "still",
}


def write_folder(folder: Path, lines: list[str], *, num_frames: int = 17, fps: float = 8) -> Path:
    """Write one clip, a.mp4, and the caption lines; return the folder."""
    write_mp4(folder / "a.mp4", render_clip(FACTS, 0, num_frames=num_frames), fps)
    (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


GOOD_LINE = json.dumps({"file": "a.mp4", "text": caption(FACTS)})


@pytest.mark.parametrize("fps", [8, 24, 23.976])
def test_mp4_round_trip_keeps_frames_and_rate(tmp_path: Path, fps: float) -> None:
    """4 levels of 255: chroma at half resolution blurs coloured edges of so small a clip."""
    video = render_clip(FACTS, 1)
    write_mp4(tmp_path / "a.mp4", video, fps)
    read, read_fps = read_mp4(tmp_path / "a.mp4")
    assert read.shape == video.shape
    assert read.dtype == torch.float32
    assert read_fps == pytest.approx(fps, abs=1e-3)
    assert float((read - video).abs().mean()) < 4 / 255
    info = probe_mp4(tmp_path / "a.mp4")
    assert (info.num_frames, info.height, info.width) == (17, 32, 32)


def test_mp4_index_comes_before_the_data(tmp_path: Path) -> None:
    """A browser starts to play such a file before it has all of it."""
    write_mp4(tmp_path / "a.mp4", render_clip(FACTS, 1), 8)
    data = (tmp_path / "a.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_odd_sizes_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="odd size.*33x32"):
        write_mp4(tmp_path / "a.mp4", torch.zeros(2, 3, 33, 32), 8)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"b\.mp4: cannot be read"):
        read_mp4(tmp_path / "b.mp4")


SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 45678 RTP/AVP 96\n"


@pytest.mark.parametrize("data", [SDP, b"ffconcat version 1.0\nfile a.mp4\n"])
def test_text_that_names_other_sources_is_no_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    """Files come from clients: they must not make us listen for 10 s, or read files of ours."""
    write_mp4(tmp_path / "a.mp4", torch.zeros(2, 3, 16, 16), 8)
    monkeypatch.chdir(tmp_path)
    assert decode_mp4((tmp_path / "a.mp4").read_bytes())[0].shape == (2, 16, 16, 3)
    began = time.monotonic()
    with pytest.raises(ValueError, match="cannot be read as a video"):
        decode_mp4(data)
    (tmp_path / "b.mp4").write_bytes(data)
    for read in (read_mp4, probe_mp4):
        with pytest.raises(ValueError, match=r"b\.mp4: cannot be read as a video"):
            read(tmp_path / "b.mp4")
    assert time.monotonic() - began < 2.0


def test_decoding_stops_at_a_budget_of_pixels(tmp_path: Path) -> None:
    """A file of some KB can hold GB of black pictures; the decoder's process would die of them."""
    assert MAX_PIXELS > 3 * 81 * 720 * 1280
    write_mp4(tmp_path / "a.mp4", torch.zeros(20, 3, 32, 64), 8)
    data = (tmp_path / "a.mp4").read_bytes()
    assert len(decode_mp4(data, max_pixels=20 * 32 * 64)[0]) == 20
    with pytest.raises(ValueError, match=r"too large: .*most 40959 pixels.* first 20 of 64x32"):
        decode_mp4(data, max_pixels=20 * 32 * 64 - 1)
    with pytest.raises(ValueError, match=r"too large: .*in the first 1 of 64x32"):
        decode_mp4(data, max_pixels=32 * 64 - 1)


def test_tiny_world_clips_are_repeatable_and_never_held_out() -> None:
    clips = TinyWorldClips(ClipShape(), num_clips=1000, clip_seed=1)
    again = TinyWorldClips(ClipShape(), num_clips=1000, clip_seed=1)
    assert len(clips) == 1000
    assert all(split_of(clips.facts(index)) == "train" for index in range(1000))
    video, text = clips.clip(999)
    assert torch.equal(video, again.clip(999)[0])
    assert parse(text) == clips.facts(999)


def test_clips_of_the_same_facts_differ() -> None:
    """The second pass over the facts must not render the first one's clips again."""
    clips = TinyWorldClips(ClipShape(), num_clips=2000, clip_seed=0)
    facts = clips.facts(0)
    later = next(index for index in range(438, 2000) if clips.facts(index) == facts)
    assert not torch.equal(clips.clip(0)[0], clips.clip(later)[0])


def test_folder_clips_give_videos_with_captions(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [GOOD_LINE, ""])
    clips = open_clips(str(folder), ClipShape(), num_clips=5, clip_seed=0)
    assert len(clips) == 1
    video, text = clips.clip(0)
    assert video.shape == (17, 3, 32, 32)
    assert text == caption(FACTS)
    with pytest.raises(IndexError, match="got 1"):
        clips.clip(1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (ClipShape(height=64, width=64), r"a\.mp4: wrong size: expected 64x64.*got 32x32"),
        (ClipShape(fps=16), r"a\.mp4: wrong frame rate: expected 16.*got 8"),
        (ClipShape(num_frames=33), r"a\.mp4: too short: expected at least 33.*got 17"),
    ],
)
def test_a_folder_of_another_shape_is_refused_when_opened(
    tmp_path: Path, shape: ClipShape, message: str
) -> None:
    """Silent resizing would train on blurred or sped-up videos."""
    folder = write_folder(tmp_path, [GOOD_LINE])
    with pytest.raises(ValueError, match=message):
        open_clips(str(folder), shape, num_clips=1, clip_seed=0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", r"captions\.jsonl:2: not JSON"),
        ('{"file": "a.mp4"}', r"captions\.jsonl:2: expected an object"),
        ('{"file": "b.mp4", "text": "x"}', r"captions\.jsonl:2: file: no such file"),
        ('{"file": "../a.mp4", "text": "x"}', r"captions\.jsonl:2: file: no such file"),
    ],
)
def test_a_bad_caption_line_is_refused_with_its_number(
    tmp_path: Path, line: str, message: str
) -> None:
    folder = write_folder(tmp_path, [GOOD_LINE, line])
    with pytest.raises(ValueError, match=message):
        open_clips(str(folder), ClipShape(), num_clips=1, clip_seed=0)


def test_a_folder_without_captions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^sft\.clips: no captions\.jsonl"):
        open_clips(str(tmp_path), ClipShape(), num_clips=1, clip_seed=0)
    with pytest.raises(ValueError, match=r"^elsewhere\.clips: no captions\.jsonl"):
        open_clips(str(tmp_path), ClipShape(), num_clips=1, clip_seed=0, where="elsewhere.clips")
