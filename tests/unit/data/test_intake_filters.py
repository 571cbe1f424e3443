"""What is kept, what is dropped and why, and the count of both."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rlvid.config.intake import IntakeConfig
from rlvid.data.clips import ClipShape
from rlvid.data.intake import REASONS, Drop, DropCounts, Intake, RealClip, TextArea
from rlvid.data.intake.intake import clip_digest
from rlvid.data.intake.records import MAX_FILE_BYTES
from rlvid.data.video_files import write_mp4
from tests.unit.data.intake_sets import (
    SHAPE,
    encoded,
    mp4,
    outcomes_of,
    reasons,
    rendered,
    section,
    tiny_pair,
    write_folder,
)

GOOD, TEXT = tiny_pair(0)


@dataclass(frozen=True)
class Case:
    """One way to be dropped: a video, or a line of captions.jsonl, and settings."""

    video: Callable[[], bytes] = lambda: GOOD
    line: bytes = b""
    text: str = TEXT
    settings: Mapping[str, Any] = field(default_factory=dict)
    text_area: TextArea | None = None


def clip(index: int = 0, **changes: Any) -> torch.Tensor:
    return rendered(index, **{"num_frames": 17, "fps": 8, **changes})[0]


def webm_without_frames() -> bytes:
    data = encoded(clip(), 8, container="webm", codec="libvpx", pix_fmt="yuv420p")
    return data[: data.index(b"\x1f\x43\xb6\x75") + 16]


def huge_avi() -> bytes:
    data = encoded(clip(), 8, container="avi", codec="rawvideo", pix_fmt="yuv420p")
    place = data.index(b"strf") + 12
    return data[:place] + struct.pack("<ii", 8192, 8192) + data[place + 8 :]


def cuts_every_half_second() -> bytes:
    scene = clip(num_frames=4)
    return mp4(torch.cat([scene, 1 - scene] * 3), 8)


CASES: dict[str, Case] = {
    "bad_json": Case(line=b"{"),
    "missing_caption": Case(line=b'{"file": "0.mp4"}'),
    "not_utf8": Case(line=b'{"file": "0.mp4", "text": "\xff"}'),
    "empty_caption": Case(text=" \n"),
    "caption_too_short": Case(text="a", settings={"min_caption_chars": 2}),
    "caption_too_long": Case(text="abc", settings={"max_caption_chars": 2}),
    "missing_file": Case(line=b'{"file": "none.mp4", "text": "a"}'),
    "outside_folder": Case(line=b'{"file": "../0.mp4", "text": "a"}'),
    "wrong_extension": Case(line=b'{"file": "captions.jsonl", "text": "a"}'),
    "unreadable_video": Case(video=lambda: b"no video at all"),
    "truncated_video": Case(video=lambda: GOOD[:-100]),
    "damaged_video": Case(video=lambda: GOOD[:-800] + b"\xff" * 800),
    "no_frames": Case(video=webm_without_frames),
    "one_frame": Case(video=lambda: mp4(clip(num_frames=1, fps=8), 8)),
    "too_short": Case(settings={"min_seconds": 3.0}),
    "too_long": Case(settings={"max_seconds": 2.0}),
    "too_small": Case(settings={"min_width": 33}),
    "too_large": Case(video=huge_avi),
    "low_frame_rate": Case(video=lambda: mp4(clip(), 7)),
    "wrong_aspect": Case(video=lambda: mp4(clip(width=36), 8), settings={"crop": "none"}),
    "shots_too_short": Case(video=cuts_every_half_second),
    "static": Case(video=lambda: mp4(clip()[:1].expand(17, -1, -1, -1), 8)),
    "too_much_motion": Case(settings={"motion_range": (0.0, 0.1)}),
    "low_aesthetic": Case(settings={"min_aesthetic": 0.99}),
    "text_overlay": Case(settings={"max_text_area": 0.0005}, text_area=lambda frames: 0.001),
}
"""Those of one clip; the others are of a whole source, or of two clips."""


@pytest.mark.parametrize("reason", CASES)
def test_a_clip_is_dropped_for_the_reason_it_has(tmp_path: Path, reason: str) -> None:
    case = CASES[reason]
    folder = write_folder(tmp_path, [(case.video(), case.text)])
    if case.line:
        (folder / "captions.jsonl").write_bytes(case.line)
    (outcome,) = outcomes_of(folder, text_area=case.text_area, **case.settings)
    assert isinstance(outcome, Drop)
    assert outcome.reason == reason, outcome.detail
    assert outcome.name == f"{folder}/captions.jsonl:1"
    assert outcome.detail


def test_a_good_clip_among_bad_ones_is_kept(tmp_path: Path) -> None:
    bad = [case for case in CASES.values() if not case.settings]
    folder = write_folder(tmp_path, [*((case.video(), case.text) for case in bad), (GOOD, TEXT)])
    lines = (folder / "captions.jsonl").read_bytes().split(b"\n")
    lines = [case.line or line for case, line in zip(bad, lines, strict=False)] + lines[-1:]
    (folder / "captions.jsonl").write_bytes(b"\n".join(lines))
    expected = [reason for reason, case in CASES.items() if not case.settings]
    assert reasons(outcomes_of(folder)) == [*expected, "kept"]


def test_every_other_reason_can_be_reached_too(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", [(GOOD, TEXT), (GOOD, "the same again")])
    with (folder / "huge.mp4").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with (folder / "captions.jsonl").open("a", encoding="utf-8") as lines:
        lines.write('\n{"file": "huge.mp4", "text": "a"}')
    (folder / "s.tar").write_bytes(b"x" * 1000)
    (folder / "s.parquet").write_bytes(b"PAR1")
    pq.write_table(pa.table({"other": [1]}), folder / "t.parquet")
    sources = [folder, *(folder / name for name in ("s.tar", "s.parquet", "t.parquet"))]
    found = reasons(outcomes_of(*sources))
    assert found == [
        "kept",
        "duplicate",
        "file_too_large",
        "unreadable_source",
        "unreadable_source",
        "wrong_columns",
    ]
    assert {*CASES, *found} == {"kept", *REASONS}


def test_a_kept_clip_has_the_wanted_shape_and_what_was_measured(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [(GOOD, f"  {TEXT}\n")])
    (kept,) = outcomes_of(folder, text_area=lambda frames: 0.01, max_text_area=0.02)
    assert isinstance(kept, RealClip)
    assert kept.video.shape == (9, 3, 32, 32)
    assert kept.video.dtype == torch.float32
    assert kept.text == TEXT
    pixels = kept.video.mul(255).round().to(torch.uint8)
    assert torch.equal(pixels.float().div(255), kept.video)
    assert kept.digest == clip_digest(pixels, TEXT) != clip_digest(pixels, "another")
    assert kept.start_s == 0.5  # 17 frames, of which the middle 9.
    expected = rendered(0)[0][12 : 12 + 27 : 3]
    assert float((kept.video - expected).abs().mean()) < 4 / 255
    assert kept.measures["text_area"] == 0.01
    assert kept.measures["source_fps"] == 24.0
    assert kept.measures["source_seconds"] == 51 / 24
    assert {"motion", "aesthetic", "num_shots"} < set(kept.measures)


def test_a_second_pass_gives_the_same(tmp_path: Path) -> None:
    """No clip is a duplicate of itself in the pass before."""
    intake = Intake(section(write_folder(tmp_path, [tiny_pair(n) for n in range(4)])), SHAPE)
    first = [(clip.name, clip.digest, clip.measures) for clip in intake.clips()]
    counts = intake.counts
    assert [(clip.name, clip.digest, clip.measures) for clip in intake.clips()] == first
    assert intake.counts == counts
    assert len(first) == counts.kept == 4


def test_it_stops_at_the_clips_that_were_asked_for(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [(b"bad", "a"), *(tiny_pair(n) for n in range(4))])
    intake = Intake(section(folder, max_clips=2), SHAPE)
    assert len(list(intake.clips())) == 2
    assert intake.counts.to_json() == {"seen": 3, "kept": 2, "dropped": {"unreadable_video": 1}}


def test_no_more_than_one_clip_is_asked_of_a_source_at_a_time(tmp_path: Path) -> None:
    """The second file is written only once the first clip has come out."""
    folder = write_folder(tmp_path, [tiny_pair(0), tiny_pair(1)])
    (folder / "1.mp4").unlink()
    outcomes = Intake(section(folder), SHAPE).outcomes()
    assert isinstance(next(outcomes), RealClip)
    write_mp4(folder / "1.mp4", rendered(1)[0], 24)
    assert isinstance(next(outcomes), RealClip)


def test_counts_add_up_and_are_written_in_a_fixed_order() -> None:
    counts = DropCounts(seen=3, kept=1)
    counts.dropped.update({"static": 1, "bad_json": 1})
    both = counts + DropCounts(seen=2, kept=2)
    assert both.is_complete
    assert not DropCounts(seen=1).is_complete
    assert both.metrics() == {
        "intake/clips/seen": 5.0,
        "intake/clips/kept": 3.0,
        "intake/clips/dropped": 2.0,
        "intake/dropped/bad_json": 1.0,
        "intake/dropped/static": 1.0,
    }
    assert list(both.to_json()["dropped"]) == ["bad_json", "static"]
    assert DropCounts.from_json(json.loads(json.dumps(both.to_json()))) == both


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({"sources": ()}, SHAPE, r"intake\.sources: nothing to read"),
        ({"sources": ("nowhere",)}, SHAPE, r"intake\.sources: unknown form of source"),
        ({"max_text_area": 0.1}, SHAPE, r"intake\.max_text_area: nothing measures text"),
        ({}, ClipShape(num_frames=81), r"intake\.max_seconds: no source could be long enough"),
        ({}, ClipShape(num_frames=1), r"intake\.max_seconds: .* two or more"),
    ],
)
def test_settings_that_could_keep_nothing_are_refused_before_anything_is_read(
    tmp_path: Path, changes: dict[str, Any], shape: ClipShape, message: str
) -> None:
    folder = write_folder(tmp_path, [(GOOD, TEXT)])
    with pytest.raises(ValueError, match=message):
        Intake(section(folder).model_copy(update=changes), shape)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"motion_range": (2.0, 1.0)}, "motion_range must be two ascending numbers"),
        ({"min_seconds": 20.0}, "min_seconds must be at most max_seconds, got 20 and 16"),
        ({"min_caption_chars": 3000}, "min_caption_chars must be at most max_caption_chars"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        IntakeConfig.model_validate(changes)


@pytest.mark.parametrize("share", [float("nan"), -0.1, 1.5])
def test_a_measurer_at_fault_ends_the_run(tmp_path: Path, share: float) -> None:
    """Its number says nothing about the clip, so the clip must not be dropped for it."""
    folder = write_folder(tmp_path, [(GOOD, TEXT)])
    with pytest.raises(ValueError, match=r"text_area: returned .* expected a share in \[0, 1\]"):
        outcomes_of(folder, text_area=lambda frames: share, max_text_area=0.5)
