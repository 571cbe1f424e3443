"""What a reward is: a small class that scores clips.

A scorer declares the clip it wants (`ClipSpec`) and, if it cares, how it is to be run (`Serving`),
and implements `score`. Group-wise and pairwise rewards implement `score_group` instead; the pool
sees by protocol which one is there. A scorer that asks a model server also has `connect`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from rlvid.records import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSpec:
    """What a scorer needs of a clip; None takes whatever comes.

    Frame rate, frame count and size are never adapted: resampling a clip changes what there is to
    judge, so a mismatch is an error. Colour and range only say how the same pixels are handed over.
    """

    fps: int | None = None
    num_frames: int | None = None
    """Exactly so many."""
    min_frames: int | None = None
    height: int | None = None
    width: int | None = None
    colour: Literal["rgb", "grey"] = "rgb"
    """grey: one channel, Rec. 709 luma, so that a reward on motion cannot be bought with colour."""
    value_range: tuple[float, float] = (0.0, 1.0)
    """(black, white) of the pixels handed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How a scorer is run; an entry of `rewards.scorers` overrides any field."""

    batch_size: int = 8
    """Most clips of one call of `score`. A group-wise scorer always gets one whole group."""
    max_wait_s: float = 0.0
    """How long a batch that is not full waits for more clips while more are on their way."""
    device: str = "cpu"
    """Where the clips are put before `score`: "cpu" or "cuda"."""
    num_replicas: int = 1
    max_replicas: int | None = None
    """Replicas grow to this with the queue; None keeps their number."""
    deadline_s: float = 120.0
    """Seconds one call may take; the replica is replaced after it."""
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    """Of each replica; a fraction shares a device."""


@runtime_checkable
class Reward(Protocol):
    """Scores each clip on its own."""

    clip_spec: ClipSpec

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, C, H, W] float32 as `clip_spec` says, B prompts -> [B] float32, higher is better.

        NaN says that this clip could not be judged; it counts as a missing score.
        """
        ...


@runtime_checkable
class GroupReward(Protocol):
    """Scores the clips of one prompt together."""

    clip_spec: ClipSpec

    def score_group(self, videos: Tensor, prompt: Prompt) -> Tensor:
        """[G, T, C, H, W] of one prompt -> [G] float32, higher is better."""
        ...


Scorer = Reward | GroupReward


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One replica of a model server that speaks the OpenAI protocol."""

    url: str
    """Base, without /v1: "http://127.0.0.1:8111"."""
    model: str
    """Name the server serves it under."""
    model_digest: str
    """What identifies the weights behind it in a score's version; an external URL's own word."""
    api_key: str = field(default="", repr=False)
    """Kept out of logs and messages."""


@runtime_checkable
class UsesServer(Protocol):
    """A scorer that asks a model server; its recipe entry names one of `rewards.servers`."""

    def connect(self, endpoints: Sequence[Endpoint]) -> None:
        """Take the replicas there are now; called before the first clip and at every change."""
        ...


@runtime_checkable
class KeepsDeadline(Protocol):
    """A scorer that waits for somebody else, and is told for how long it may."""

    def keep_deadline(self, deadline_s: float) -> None:
        """Take the recipe's `deadline_s`; called once it is open, if the recipe gives one."""
        ...


class RewardError(RuntimeError):
    """A scorer broke its contract or failed; the message names it."""


class RewardTimeoutError(RewardError):
    """Scoring, or starting to score, took longer than the recipe allows."""


def serving_of(scorer: object) -> Serving:
    """Return what the scorer declares, or the defaults."""
    serving = getattr(scorer, "serving", Serving())
    if not isinstance(serving, Serving):
        raise RewardError(
            f"{type(scorer).__name__}.serving: expected a Serving, got {type(serving).__name__}"
        )
    return serving


def working_bytes_of(scorer_class: object) -> float | None:
    """Return `WORKING_BYTES` of a scorer's class, None where it does not say.

    Bytes for each pixel of all frames of a clip that are alive at once while one clip is scored,
    the clip that was handed over not among them; for the planner. A test counts those of the
    built-in critics.
    """
    working: float | None = getattr(scorer_class, "WORKING_BYTES", None)
    return working


def takes_groups(scorer_class: object) -> bool:
    """Return whether a scorer's class scores the clips of a prompt together."""
    return hasattr(scorer_class, "score_group")


def version_of(scorer: object) -> str:
    """Return what the scorer says of its version, "" when it says nothing.

    The pool adds the class, its settings and a digest of its source to it, so only what those do
    not show has to be named: weights, prompt files, the model behind a server.
    """
    return str(getattr(scorer, "version", ""))
