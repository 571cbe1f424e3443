"""What is done to a disk while it fails, and what must be there afterwards.

A scenario prepares a folder, acts in it, says which parts are finished, and checks what a crash at
any moment of the act left. Imports no torch here: a scenario of groups does when it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rlvid.learners import checkpoint

Say = Callable[[str], None]
"""Tells the parent, which outlives the crash, that a part of the act is finished."""


class Scenario(Protocol):
    """One way of writing."""

    def prepare(self, folder: Path) -> None:
        """Write what is there before."""

    def act(self, folder: Path, say: Say) -> None:
        """Write what may be cut off at any system call."""

    def check(self, folder: Path, said: list[str]) -> None:
        """Raise AssertionError unless what is left can be used."""


@dataclass(frozen=True)
class WriteCheckpoint:
    """Checkpoints of `before`, then one of `step`."""

    before: tuple[int, ...]
    step: int
    keep: int

    def prepare(self, folder: Path) -> None:
        for step in self.before:
            write_checkpoint(folder / "checkpoints", step, "old", keep=9)

    def act(self, folder: Path, say: Say) -> None:
        write_checkpoint(folder / "checkpoints", self.step, "new", keep=self.keep)
        say("done")

    def check(self, folder: Path, said: list[str]) -> None:
        place = folder / "checkpoints"
        found = checkpoint.find_latest(place)
        allowed = {(self.step, "new")}
        if not said:
            allowed |= {(step, "old") for step in self.before[-1:]}
        if found is None:
            assert not self.before, "there was a checkpoint, and none is found"
            assert not said, "a checkpoint was committed, and none is found"
        else:
            kind = (found.path / "kind").read_text()
            assert (found.step, kind) in allowed, f"found step {found.step} {kind}"
            assert_content(found.path, found.step, kind)
        write_checkpoint(place, self.step + 1, "next", keep=1)
        after = checkpoint.find_latest(place)
        assert after is not None
        assert_content(after.path, self.step + 1, "next")
        left = sorted(path.name for path in place.iterdir())
        assert left == ["latest", f"step-{self.step + 1:08d}"], f"left behind: {left}"


@dataclass(frozen=True)
class RecoverCheckpoint(WriteCheckpoint):
    """The same after a crash that had left something of every kind behind."""

    def prepare(self, folder: Path) -> None:
        place = folder / "checkpoints"
        super().prepare(folder)
        last = self.before[-1]
        (place / f"step-{last:08d}").rename(place / f".replaced-step-{last:08d}")
        for name in (".writing-step-00000009-12345678", ".deleting-12345678-step-00000000"):
            (place / name / "engine").mkdir(parents=True)
            (place / name / "engine" / "half").write_bytes(b"half")
        (place / ".latest.1.writing").write_text("step-")


def write_checkpoint(folder: Path, step: int, kind: str, *, keep: int) -> None:
    with checkpoint.writing(folder, step=step, keep=keep) as temporary:
        (temporary / "engine" / "deep").mkdir(parents=True)
        for name, content in _content(step, kind).items():
            (temporary / name).write_bytes(content)


def assert_content(path: Path, step: int, kind: str) -> None:
    for name, content in _content(step, kind).items():
        assert (path / name).read_bytes() == content, f"{path.name}: {name} is not what was written"


def _content(step: int, kind: str) -> dict[str, bytes]:
    return {
        "kind": kind.encode(),
        "engine/weights.bin": f"{kind}-{step}.".encode() * 3000,
        "engine/deep/optimizer.bin": bytes([step]) * 10_000,
    }


def checkpoints() -> dict[str, Scenario]:
    return {
        "first": WriteCheckpoint(before=(), step=1, keep=1),
        "next": WriteCheckpoint(before=(1,), step=2, keep=1),
        "overwrite": WriteCheckpoint(before=(1, 2), step=2, keep=2),
        "keep two": WriteCheckpoint(before=(1, 2, 3), step=4, keep=2),
        "recover": RecoverCheckpoint(before=(1, 2), step=3, keep=1),
    }
