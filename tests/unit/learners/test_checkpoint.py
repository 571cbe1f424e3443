"""Checkpoints survive crashes and refuse damage."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from pathlib import Path
from random import Random

import pytest

from rlvid import durable
from rlvid.durable import DiskFullError
from rlvid.learners import checkpoint, checkpoint_manifest
from rlvid.learners.checkpoint import CheckpointError, begin, commit, find_latest, verify
from tests.disk_faults.places import quick_folder


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


def test_damaged_later_step_goes_and_not_the_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that went back before a damaged checkpoint writes lower steps than what is there."""
    _write(tmp_path, 5)
    (_write(tmp_path, 10) / "state.json").unlink()
    with caplog.at_level(logging.WARNING):
        _write(tmp_path, 7, keep=1)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000007"]
    assert "step-00000010" in caplog.text


def test_damaged_earlier_step_takes_no_place_of_a_whole_one(tmp_path: Path) -> None:
    """Two are kept so that one may be damaged; two of which one is damaged already are one."""
    for step in (1, 2, 3):
        _write(tmp_path, step)
    (tmp_path / "step-00000002" / "state.json").write_text("short")
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    _write(tmp_path, 4, keep=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [
        "step-00000001",
        "step-00000004",
    ]


def test_disk_that_gives_back_other_bytes_costs_no_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found before the new one gets its name; a file is changed as its pages are dropped."""
    _write(tmp_path, 1)

    def rot(path: Path) -> None:
        if path.name == "weights.bin":
            path.write_bytes(b"\x00" + path.read_bytes()[1:])

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_manifest, "forget_pages", rot)
        with pytest.raises(CheckpointError, match=r"gave back other bytes .*engine/weights\.bin"):
            _write(tmp_path, 2, keep=1)
    latest = find_latest(tmp_path)
    assert latest is not None
    assert latest.step == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_file_of_another_rank_that_is_not_to_be_seen_stops_the_commit(tmp_path: Path) -> None:
    """On a shared file system a listing may be older than the file; a manifest must not be."""
    temporary = begin(tmp_path, 1)
    (temporary / "rank-0").write_bytes(b"0")
    with pytest.raises(CheckpointError, match=r"\['rank-1'\] are not to be seen"):
        commit(temporary, step=1, keep=1, expected=["rank-0", "rank-1"])
    assert find_latest(tmp_path) is None


def test_slow_disk_ends_in_an_error_that_says_how_far_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync may hang in the kernel for minutes; what wakes up later must not commit."""
    _write(tmp_path, 1)
    wakes, has_ended = threading.Event(), threading.Event()
    real = durable.sync

    def hang(path: Path) -> None:
        if path.name == "weights.bin":
            wakes.wait(60.0)
        real(path)
        if wakes.is_set():
            has_ended.set()

    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync", hang)
        temporary = begin(tmp_path, 2)
        (temporary / "a").write_bytes(b"x" * 100)
        (temporary / "weights.bin").write_bytes(b"x" * 100)
        with pytest.raises(CheckpointError, match=r"100 of 400 bytes .* at syncing weights\.bin"):
            commit(temporary, step=2, keep=1, deadline_s=0.2)
        wakes.set()
        assert has_ended.wait(60.0)
    for thread in threading.enumerate():
        if thread.name == "checkpoint-2":
            thread.join(60.0)
    latest = find_latest(tmp_path)
    assert latest is not None
    assert latest.step == 1
    _write(tmp_path, 2, keep=1)


def test_progress_goes_through_every_byte_twice(tmp_path: Path) -> None:
    """Once for the digest and once to read it back."""
    seen: list[tuple[int, int]] = []
    temporary = begin(tmp_path, 1)
    (temporary / "a").write_bytes(b"x" * 100)
    commit(
        temporary,
        step=1,
        keep=1,
        deadline_s=60.0,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(100, 200), (200, 200)]


@pytest.mark.parametrize("kind", ["latest", "folders", "other version"])
def test_folder_of_another_program_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    """DeepSpeed and others keep `latest` and folders of steps too; `keep` would remove them."""
    theirs = tmp_path / "step-00000001"
    theirs.mkdir()
    (theirs / "model.bin").write_bytes(b"theirs")
    if kind == "latest":
        (tmp_path / "latest").write_text("global_step1")
    if kind == "other version":
        (theirs / "manifest.json").write_text(json.dumps({"step": 1, "files": {}}))
    for use in (find_latest, lambda folder: begin(folder, 2)):
        with pytest.raises(CheckpointError, match="it is another program's folder"):
            use(tmp_path)
    assert (theirs / "model.bin").read_bytes() == b"theirs"


def test_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    """Silently going on with other settings would make a run of neither."""
    commit(begin(tmp_path, 1), step=1, keep=1, recipe="one")
    assert find_latest(tmp_path, recipe="one") is not None
    assert find_latest(tmp_path) is not None
    with pytest.raises(CheckpointError, match="another recipe: expected two, got one"):
        find_latest(tmp_path, recipe="two")


def test_damaged_pointer_is_no_damage(tmp_path: Path) -> None:
    """`latest` is for people; what is there is found by looking."""
    _write(tmp_path, 1)
    (tmp_path / "latest").write_text("nonsense")
    latest = find_latest(tmp_path)
    assert latest is not None
    assert latest.step == 1
    _write(tmp_path, 2)
    assert (tmp_path / "latest").read_text() == "step-00000002"


def test_process_that_wakes_up_cannot_commit_after_another_began(tmp_path: Path) -> None:
    """A stopped driver was replaced; its half-written files are gone, and it must not put up
    those of its successor as its own."""
    stopped = begin(tmp_path, 1)
    (stopped / "state.json").write_text("old")
    temporary = begin(tmp_path, 1)
    (temporary / "state.json").write_text("half")
    with pytest.raises(CheckpointError, match="cannot be written"):
        commit(stopped, step=1, keep=1)
    (temporary / "state.json").write_text("whole")
    commit(temporary, step=1, keep=1)
    latest = find_latest(tmp_path)
    assert latest is not None
    assert (latest.path / "state.json").read_text() == "whole"


def test_less_room_than_the_last_one_took_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the groups in it, which are links and take none."""
    temporary = begin(tmp_path, 1)
    (temporary / "groups").mkdir()
    (temporary / "groups" / "a").write_bytes(b"x" * 5000)
    (temporary / "weights.bin").write_bytes(b"x" * 1000)
    commit(temporary, step=1, keep=1)
    monkeypatch.setattr(durable, "free_bytes", lambda folder: 999)
    with pytest.raises(DiskFullError, match=r"checkpoint 2: .*at least 1,000 bytes, 999 are free"):
        begin(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
    monkeypatch.setattr(durable, "free_bytes", lambda folder: 1000)
    begin(tmp_path, 2)


def test_write_that_torch_says_nothing_of_is_a_full_disk_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.save keeps no reason: "unexpected pos 576 vs 534" is all that is said of ENOSPC."""
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    assert checkpoint.failed(begin(tmp_path, 1), 1, error) is error
    temporary = begin(tmp_path, 1)
    (temporary / "half.pt").write_bytes(b"x" * 1234)
    monkeypatch.setattr(durable, "free_bytes", lambda folder: 0)
    found = checkpoint.failed(temporary, 1, error)
    assert isinstance(found, DiskFullError)
    assert "at least 1,234 bytes" in str(found)
    assert list(tmp_path.iterdir()) == []


def test_no_damage_to_any_file_passes_for_a_checkpoint() -> None:
    """500 seeded flips, cuts, additions, losses and exchanges; the one before is found instead."""
    random = Random(0)
    with quick_folder() as folder:
        _write(folder, 1)
        whole = _write(folder, 2)
        content = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
        names = sorted(content)
        for _ in range(500):
            path = random.choice(names)
            data = content[path]
            place = random.randrange(len(data))
            kind = random.choice(("flip", "cut", "add", "lose", "exchange", "zero"))
            if kind == "flip":
                byte = bytes([data[place] ^ (1 << random.randrange(8))])
                path.write_bytes(data[:place] + byte + data[place + 1 :])
            elif kind == "cut":
                path.write_bytes(data[:place])
            elif kind == "add":
                path.write_bytes(data + data[-1:])
            elif kind == "lose":
                path.unlink()
            elif kind == "exchange":
                path.write_bytes(content[names[names.index(path) - 1]])
            else:
                path.write_bytes(bytes(len(data)))
            found = find_latest(folder)
            assert found is not None
            assert found.step == 1, f"{kind} of {path.name} at {place}"
            path.write_bytes(data)
        verify(whole)


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match=r"checkpoint 1: .*file/checkpoints' cannot be writ"):
        begin(tmp_path / "file" / "checkpoints", 1)


@pytest.mark.parametrize("new_is_whole", [True, False])
def test_replacement_cut_in_two_is_finished_or_undone(tmp_path: Path, new_is_whole: bool) -> None:
    """Both are there between the last rename and the removal; the new one was read back before."""
    path = _write(tmp_path, 1)
    (path / "state.json").rename(tmp_path / "kept")
    if new_is_whole:
        (tmp_path / "kept").rename(path / "state.json")
    shutil.copytree(path, tmp_path / ".replaced-step-00000001")
    if not new_is_whole:
        (tmp_path / "kept").rename(tmp_path / ".replaced-step-00000001" / "state.json")
    found = find_latest(tmp_path)
    assert found is not None
    assert found.path.name == ("step-00000001" if new_is_whole else ".replaced-step-00000001")
    begin(tmp_path, 2)
    after = find_latest(tmp_path)
    assert after is not None
    assert after.path == path
    assert not list(tmp_path.glob(".replaced-*"))
