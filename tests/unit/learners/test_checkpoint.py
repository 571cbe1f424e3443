"""Checkpoints survive crashes and refuse damage."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from rlvid.learners import checkpoint
from rlvid.learners.checkpoint import CheckpointError, begin, commit, find_latest, verify


def _write(folder: Path, step: int, keep: int = 5) -> Path:
    temporary = begin(folder, step)
    (temporary / "engine").mkdir()
    (temporary / "engine" / "weights.bin").write_bytes(bytes([step]) * 1000)
    (temporary / "state.json").write_text(json.dumps({"step": step}))
    return commit(temporary, step=step, keep=keep)


def test_newest_checkpoint_is_found(tmp_path: Path) -> None:
    for step in (2, 9, 10):
        _write(tmp_path, step)
    latest = find_latest(tmp_path)
    assert latest is not None
    assert latest.step == 10
    assert json.loads((latest.path / "state.json").read_text()) == {"step": 10}


def test_folder_without_checkpoints_gives_none(tmp_path: Path) -> None:
    """A run that died before its first checkpoint starts from the beginning."""
    assert find_latest(tmp_path / "nothing") is None


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        _write(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [
        "step-00000004",
        "step-00000005",
    ]
    assert (tmp_path / "latest").read_text() == "step-00000005"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("flip", "expected digest"),
        ("truncate", "expected 1000 bytes, got 999"),
        ("remove", "differing"),
        ("add", "differing"),
        ("manifest", "manifest.json"),
        ("no_manifest", "cannot be read"),
        ("rename", "expected the step of"),
    ],
)
def test_damaged_checkpoint_is_skipped_with_a_warning_that_names_it(
    tmp_path: Path, damage: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The one before it still works; losing some steps beats losing the run."""
    _write(tmp_path, 1)
    newest = _write(tmp_path, 2)
    weights = newest / "engine" / "weights.bin"
    if damage == "flip":
        content = bytearray(weights.read_bytes())
        content[500] ^= 1
        weights.write_bytes(content)
    elif damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "remove":
        weights.unlink()
    elif damage == "add":
        (newest / "odd.bin").write_bytes(b"x")
    elif damage == "manifest":
        text = (newest / "manifest.json").read_text()
        (newest / "manifest.json").write_text(text.replace("1000", "1001"))
    elif damage == "no_manifest":
        (newest / "manifest.json").unlink()
    elif damage == "rename":
        newest = newest.rename(tmp_path / "step-00000003")
    with caplog.at_level(logging.WARNING):
        latest = find_latest(tmp_path)
    assert latest is not None
    assert latest.step == 1
    assert newest.name in caplog.text
    assert says in caplog.text
    with pytest.raises(CheckpointError, match=newest.name):
        verify(newest)


def test_nothing_usable_is_an_error_that_lists_everything(tmp_path: Path) -> None:
    """Starting over silently would throw the run away."""
    for path in [_write(tmp_path, step) for step in (1, 2)]:
        (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match="none of 2 .*step-00000002.*step-00000001"):
        find_latest(tmp_path)


def test_rewriting_a_step_after_a_resume_replaces_it(tmp_path: Path) -> None:
    """A resumed run reaches the same step again."""
    _write(tmp_path, 1)
    temporary = begin(tmp_path, 1)
    (temporary / "other.bin").write_bytes(b"new")
    commit(temporary, step=1, keep=2)
    latest = find_latest(tmp_path)
    assert latest is not None
    assert (latest.path / "other.bin").read_bytes() == b"new"
    assert not list(tmp_path.glob(f"{checkpoint._REPLACED}*"))
