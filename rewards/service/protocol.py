"""The messages of the HTTP reward service, msgpack in both directions; see `wire.py`.

A request holds groups of clips; the answer has one score for each clip and scorer. Each score comes
with the id and the digest of the clip it was given to, so a mix-up anywhere on the way is seen.
"""

from __future__ import annotations

from typing import Annotated

import xxhash
from pydantic import Field, model_validator

from rlvid.rewards.service.media import SentPrompt
from rlvid.rewards.wire import Array, Message, Name, Text

MEDIA_TYPE = "application/msgpack"
MAX_GROUPS = 1024
MAX_CLIPS = 1024
"""Of one group."""


class ClipGroup(Message):
    """Clips of one prompt; group-wise scorers judge them together, others one by one."""

    group_id: Name
    prompt: SentPrompt
    clip_ids: Annotated[list[Name], Field(min_length=1, max_length=MAX_CLIPS)]
    fps: Annotated[float, Field(gt=0)] | None = None
    """Of `frames`; MP4 files say it themselves."""
    frames: Array | None = None
    """uint8 [G, T, H, W, 3]."""
    files: Annotated[list[bytes], Field(max_length=MAX_CLIPS)] | None = None
    """G MP4 files."""

    @model_validator(mode="after")
    def _check(self) -> ClipGroup:
        if (self.frames is None) == (self.files is None):
            raise ValueError("expected exactly one of frames and files")
        if len(set(self.clip_ids)) != len(self.clip_ids):
            raise ValueError("two clips have the same id")
        if self.frames is not None:
            shape = self.frames.shape
            if self.frames.dtype != "uint8" or len(shape) != 5 or shape[4] != 3 or 0 in shape:
                raise ValueError(
                    f"expected frames uint8 [G, T, H, W, 3], got {self.frames.dtype} {shape}"
                )
            if self.fps is None:
                raise ValueError("frames need their fps; some scorers judge speed")
        given = self.frames.shape[0] if self.frames is not None else len(self.files or ())
        if given != len(self.clip_ids):
            raise ValueError(f"expected a clip for each of {len(self.clip_ids)} ids, got {given}")
        return self

    def digests(self) -> list[str]:
        """Return xxh3-128 of each clip's bytes as they were sent, hex."""
        if self.files is not None:
            pieces: list[memoryview | bytes] = list(self.files)
        else:
            assert self.frames is not None, "checked above"
            data = memoryview(self.frames.data)
            size = len(data) // len(self.clip_ids)
            pieces = [data[start : start + size] for start in range(0, len(data), size)]
        return [xxhash.xxh3_128_hexdigest(piece) for piece in pieces]


class ScoreRequest(Message):
    request_id: Annotated[str, Field(min_length=8, max_length=128)]
    """A repeated id is answered with the scores of the first time, not scored again."""
    groups: Annotated[list[ClipGroup], Field(min_length=1, max_length=MAX_GROUPS)]
    scorers: list[Name] = []
    """Whose scores are wanted; all when empty."""

    @model_validator(mode="after")
    def _check(self) -> ScoreRequest:
        ids = [group.group_id for group in self.groups]
        if len(set(ids)) != len(ids):
            raise ValueError("two groups have the same id")
        return self

    @property
    def num_clips(self) -> int:
        return sum(len(group.clip_ids) for group in self.groups)


class ClipScore(Message):
    clip_id: Name
    digest: Name
    """Of the clip that was judged, see ClipGroup.digests."""
    scorer: Name
    value: float | None
    """None when the scorer failed, for the reason in `error`; it is never 0 then."""
    error: Text | None


class ScoredGroup(Message):
    group_id: Name
    scores: list[ClipScore]


class ScoreAnswer(Message):
    request_id: Name
    groups: list[ScoredGroup]


class ScorerDescription(Message):
    name: Name
    weight: float
    """In the recipe that the service runs."""
    is_group_wise: bool
    version: Name
    """Changes when the same clip may get another score."""


class ServiceInfo(Message):
    """What GET /v1/scorers says, as JSON."""

    scorers: list[ScorerDescription]
    max_body_bytes: int
    deadline_s: float
    """Seconds after which a request is answered 504; its scores are kept for a repeated id."""
