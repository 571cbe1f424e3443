"""Where pairs come from: records read strictly, weak labels, degradations."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.config.reward_model import RungConfig, WeakPairsConfig
from rlvid.data.clips import ClipShape
from rlvid.data.tiny_world import BREAKAGES, all_facts, parse, render_clip
from rlvid.data.video_files import write_mp4
from rlvid.reward_models import PARTS
from rlvid.reward_models.degradations import DEGRADATIONS, degrade
from rlvid.reward_models.pairs import PairSet, is_heldout
from rlvid.reward_models.records import PREFERENCES_FILE, ClipFiles, read_preferences
from rlvid.reward_models.weak import build_weak_pairs

SHAPE = ClipShape(num_frames=13, height=16, width=16, fps=8)
GOOD = {"a": "a.mp4", "b": "b.mp4", "prompt": "a red ball", "labels": {"VQ": "A", "MQ": "tie"}}


def _folder(tmp_path: Path, *records: Any) -> Path:
    for index, name in enumerate(("a.mp4", "b.mp4")):
        if not (tmp_path / name).exists():
            write_mp4(tmp_path / name, torch.full((13, 3, 16, 16), 0.2 + 0.5 * index), 8)
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (tmp_path / PREFERENCES_FILE).write_text("\n".join(lines) + "\n")
    return tmp_path


def test_records_come_back_with_clips_and_labels(tmp_path: Path) -> None:
    turned = {**GOOD, "a": "b.mp4", "b": "a.mp4", "labels": {"TA": "B"}}
    pairs = read_preferences(_folder(tmp_path, GOOD, "", turned), SHAPE)
    first, second = pairs.pairs
    assert (first.first, first.second, second.first, second.second) == (0, 1, 1, 0)
    assert first.labels[:2] == (1.0, 0.0)
    assert math.isnan(first.labels[2])
    assert second.labels[2] == -1.0
    assert len(pairs.clips) == 2
    assert float(pairs.videos([0]).mean()) == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ("{", "jsonl:1: not JSON"),
        ([], "jsonl:1: expected an object with"),
        ({**GOOD, "weight": 1}, "expected an object with .* got .*weight"),
        ({**GOOD, "a": "none.mp4"}, "jsonl:1: a: no such file in the folder, got 'none.mp4'"),
        ({**GOOD, "b": "../b.mp4"}, "jsonl:1: b: no such file in the folder"),
        ({**GOOD, "b": "a.mp4"}, "a and b: expected two clips, got 'a.mp4' twice"),
        ({**GOOD, "prompt": " "}, "prompt: expected text, got ' '"),
        ({**GOOD, "labels": {}}, "labels: expected e.g."),
        ({**GOOD, "labels": {"XQ": "A"}}, "labels: unknown part 'XQ': expected VQ, MQ, TA"),
        ({**GOOD, "labels": {"VQ": 1}}, "labels: VQ: expected one of A, B, tie, got 1"),
    ],
)
def test_bad_record_is_refused_by_its_line(tmp_path: Path, record: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_preferences(_folder(tmp_path, record), SHAPE)


def test_clip_of_another_shape_and_missing_file_are_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path, GOOD)
    with pytest.raises(ValueError, match="a.mp4: expected 17 frames or more of 16x16 at 8 fps"):
        read_preferences(folder, ClipShape(num_frames=17, height=16, width=16, fps=8))
    with pytest.raises(ValueError, match=f"no {PREFERENCES_FILE} in"):
        read_preferences(folder / "nothing", SHAPE)


def test_clips_in_memory_are_bounded_by_bytes(tmp_path: Path) -> None:
    """Clips of 81x480x832 are 97 MB each: a bound on their number is none on memory.

    What left memory is decoded anew, which shows once the file is gone.
    """
    paths = tuple(tmp_path / name for name in ("a.mp4", "b.mp4", "c.mp4"))
    for path in paths:
        write_mp4(path, torch.full((13, 3, 16, 16), 0.5), 8)
    size = 13 * 3 * 16 * 16
    two, none = (ClipFiles(paths, 13, max_bytes=n) for n in (2 * size, size - 1))
    for index in (0, 1, 0, 2):
        two.clip(index)
    none.clip(0)
    for path in paths:
        path.unlink()
    assert two.clip(0).nbytes == two.clip(2).nbytes == size
    with pytest.raises(ValueError, match="b.mp4: cannot be read as a video"):
        two.clip(1)
    assert none.clip(0).nbytes == size, "the newest clip is kept, however large"


def test_no_degradation_is_a_breakage() -> None:
    """The breakages are the test: a reward model that saw one with a label proves nothing."""
    assert set(DEGRADATIONS).isdisjoint(BREAKAGES)
    assert {item.spoils for item in DEGRADATIONS.values()} <= set(PARTS)


@pytest.mark.parametrize("name", sorted(DEGRADATIONS))
def test_degradation_shows_and_is_the_same_at_every_call(name: str) -> None:
    facts = all_facts()[0]
    clip, other = (render_clip(facts, seed, num_frames=17) for seed in (0, 1))
    spoilt = degrade(name, clip, other, seed=3)
    assert spoilt.shape == clip.shape
    assert 0.0 <= float(spoilt.min()) <= float(spoilt.max()) <= 1.0
    assert float((spoilt - clip).abs().mean()) > 0.004
    assert torch.equal(spoilt, degrade(name, clip, other, seed=3))
    assert torch.equal(clip, render_clip(facts, 0, num_frames=17)), "changed the clip it was given"


def _grey_rungs(index: int, texts: Sequence[str], seeds: Sequence[int], true: Tensor) -> Tensor:
    return torch.full_like(true, 10 * index)


def _weak(heldout_frac: float = 0.3, **changes: Any) -> PairSet:
    config = WeakPairsConfig(num_prompts=24).model_copy(update=changes)
    return build_weak_pairs(
        config, SHAPE, seed=5, heldout_frac=heldout_frac, rung_clips=_grey_rungs
    )


def test_weak_pairs_name_the_better_clip_first() -> None:
    pairs = _weak()
    kinds = {pair.kind for pair in pairs.pairs}
    assert {"tie", "ladder", "mismatch"} < kinds
    assert kinds - {"tie", "ladder", "mismatch"} <= set(DEGRADATIONS)
    for pair in pairs.pairs:
        assert all(label in (0.0, 1.0) for label in pair.labels)
        assert any(pair.labels) == (pair.kind != "tie")


def test_ladder_says_in_which_parts_the_lower_rung_is_worse() -> None:
    """True over decoded is a matter of VQ alone; decoded over a policy of all three."""
    pairs = _weak(degradation_pairs=0, mismatch_pairs=0, tie_pairs=0, ladder_pairs=6)
    seen = set()
    for pair in pairs.pairs:
        below = int(pairs.clips.clip(pair.second)[0, 0, 0, 0])
        above_clip = pairs.clips.clip(pair.first)
        is_grey = bool((above_clip == above_clip[0, 0, 0, 0]).all())
        above = int(above_clip[0, 0, 0, 0]) if is_grey else 0
        assert above < below
        expected = (1.0, 0.0, 0.0) if (above, below) == (0, 10) else (1.0, 1.0, 1.0)
        assert pair.labels == expected
        seen.add((above, below))
    assert len(seen) == 6


def test_mismatch_never_is_an_adherence_breakage() -> None:
    """Those change one attribute; a mismatched clip's own caption differs in two at least."""
    pairs = _weak()
    caption_of = {p.first: p.prompt for p in pairs.pairs if p.kind in ("tie", "mismatch")}
    checked = 0
    for pair in pairs.pairs:
        if pair.kind == "mismatch" and pair.second in caption_of:
            wanted, shown = parse(pair.prompt), parse(caption_of[pair.second])
            assert wanted is not None
            assert shown is not None
            assert sum(wanted[key] != shown[key] for key in wanted) >= 2
            checked += 1
    assert checked > 20


def test_weak_pairs_are_the_same_at_every_call() -> None:
    """A resume makes them again."""
    one, two = _weak(), _weak()
    assert one.pairs == two.pairs
    assert all(torch.equal(one.clips.clip(i), two.clips.clip(i)) for i in range(len(one.clips)))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"degradations": ("hover",)}, "unknown degradation 'hover'"),
        ({"ladder": (RungConfig(source="true"),)}, "expected two rungs or more"),
        ({"degradation_pairs": 99}, "degradation_pairs: expected at most 10"),
    ],
)
def test_weak_pairs_that_cannot_be_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        _weak(**changes)


def test_prompts_stay_on_one_side_of_the_split() -> None:
    train, heldout = _weak().split(0.3)
    assert set(train.prompts()).isdisjoint(heldout.prompts())
    assert all(is_heldout(prompt, 0.3) for prompt in heldout.prompts())
    with pytest.raises(ValueError, match="heldout_frac: 1e-09 of"):
        _weak().split(1e-9)


@pytest.mark.parametrize("frac", [0.15, 0.3])
def test_no_clip_is_trained_on_and_held_out(frac: float) -> None:
    """The wrong clips of mismatch pairs are other prompts' clips: they must be of the same side."""
    train, heldout = _weak(heldout_frac=frac, num_prompts=48).split(frac)
    used = [{i for p in side.pairs for i in (p.first, p.second)} for side in (train, heldout)]
    assert used[0].isdisjoint(used[1])
    for side in (train, heldout):
        assert any(pair.kind == "mismatch" for pair in side.pairs)
