"""Real clips of a data set: what was seen, kept and dropped is kept with them and is a metric."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlvid.config import Recipe
from rlvid.data.clips import clip_shape
from rlvid.data.engine.real_clips import ManifestClips
from rlvid.launch.data_engine.real import open_real
from rlvid.observability.metrics import check_names
from tests.unit.data.intake_sets import SETTINGS, mp4, rendered
from tests.unit.launch.hand_made import recipe


def _recipe(folder: Path, num_clips: int = 9) -> Recipe:
    intake = {**SETTINGS, "sources": [str(folder)]}
    real = {"source": "videos", "intake": intake, "num_clips": num_clips}
    return recipe(data_engine={"real": real})


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two good clips, one of them twice, one without a caption and one that is no video."""
    folder = tmp_path / "videos"
    folder.mkdir()
    lines: list[dict[str, str]] = []
    for number in (0, 1, 1):
        video, text = rendered(number)
        name = f"{len(lines)}.mp4"
        (folder / name).write_bytes(mp4(video, 24))
        lines.append({"video": name, "text": text})
    (folder / "text.mp4").write_text("no video")
    lines += [{"video": "0.mp4"}, {"video": "text.mp4", "text": "a video"}]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_every_reason_is_a_metric_and_survives(videos: Path, tmp_path: Path) -> None:
    real = open_real(_recipe(videos), tmp_path / "set")
    metrics = real.counts.metrics()
    check_names(metrics)
    assert metrics == {
        "intake/clips/seen": 5.0,
        "intake/clips/kept": 2.0,
        "intake/clips/dropped": 3.0,
        "intake/dropped/missing_caption": 1.0,
        "intake/dropped/unreadable_video": 1.0,
        "intake/dropped/duplicate": 1.0,
    }
    for file in videos.iterdir():
        file.unlink()
    again = open_real(_recipe(videos), tmp_path / "set")
    assert again.counts == real.counts, "what was taken in is not taken in again"
    records = list(again.records())
    assert len(records) == 2
    made = _recipe(videos)
    clips = ManifestClips(tmp_path / "set", records, clip_shape(made.model))
    assert clips.clip(0)[0].shape == (made.model.num_frames, 3, 32, 32)


def test_simulated_clips_are_all_kept(tmp_path: Path) -> None:
    real = open_real(recipe(data_engine={"real": {"num_clips": 3}}), tmp_path)
    assert real.counts.to_json() == {"seen": 3, "kept": 3, "dropped": {}}
    assert len(list(real.records())) == 3


def test_none_asked_for_are_none_seen(tmp_path: Path) -> None:
    real = open_real(recipe(data_engine={"real": {"source": "none"}}), tmp_path)
    assert (real.counts.seen, list(real.records())) == (0, [])
