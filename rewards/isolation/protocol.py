"""The messages between the pool and a scorer that runs in another interpreter.

The first frame the child sends is JSON, since it says which packages, msgpack among them, it could
not import; every later one is msgpack. A request and its answer carry the same id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rlvid.records import Prompt
from rlvid.rewards import wire
from rlvid.rewards.wire import Array, Message, Name, Text, WirePrompt


class Hello(Message):
    """What the other interpreter is."""

    executable: str
    versions: dict[str, str]
    """Package to version, "python" among them."""
    failed: dict[str, str]
    """Package to what importing it raised."""


class Open(Message):
    kind: Literal["open"] = "open"
    id: int
    use: Name
    config: dict[str, Any]
    where: Name
    device: str | None
    """Where clips go; None as the scorer declares."""
    deadline_s: float | None
    """Of one call; None as the scorer declares."""
    num_threads: int


class LocalPrompt(WirePrompt):
    """A prompt whose media are read where they lie: both ends are on one machine."""

    media: dict[Name, Text] = {}
    """Name to an absolute path."""

    def prompt(self) -> Prompt:
        return replace(super().prompt(), media=self.media)


class ScoreClips(Message):
    kind: Literal["score"] = "score"
    id: int
    videos: Array
    prompts: Annotated[list[LocalPrompt], Field(min_length=1)]
    """As many as clips, or the one of the whole group."""


class Connect(Message):
    kind: Literal["connect"] = "connect"
    id: int
    endpoints: list[dict[str, str]]


Request = Annotated[Open | ScoreClips | Connect, Field(discriminator="kind")]


class Opened(Message):
    kind: Literal["opened"] = "opened"
    id: int
    clip_spec: dict[str, Any]
    serving: dict[str, Any]
    version: Text
    is_group: bool
    uses_server: bool


class Scored(Message):
    kind: Literal["scored"] = "scored"
    id: int
    scores: Array


class Connected(Message):
    kind: Literal["connected"] = "connected"
    id: int


class Failed(Message):
    kind: Literal["failed"] = "failed"
    id: int
    error_type: Name
    error: Text


Answer = Annotated[Opened | Scored | Connected | Failed, Field(discriminator="kind")]


def local_prompts(records: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Return what a list of `LocalPrompt` reads."""
    return [
        {
            **wire.prompt(record),
            "media": {name: str(Path(path).absolute()) for name, path in record.media.items()},
        }
        for record in records
    ]
