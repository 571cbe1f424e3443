"""The plain worker of one scorer: takes clips as stored, hands them over as declared, scores them.

Letters: B clips of a call, T pixel frames, H W pixels, C channels (1 for grey).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rlvid.config.rewards import ScorerConfig
from rlvid.records import Prompt, Score
from rlvid.rewards.base import (
    ClipSpec,
    Endpoint,
    GroupReward,
    Reward,
    RewardError,
    RewardTimeoutError,
    Serving,
    UsesServer,
    serving_of,
)
from rlvid.rewards.decoding import Frames
from rlvid.rewards.dispatch.cache import scorer_version
from rlvid.rewards.flop_count import CallCost, FlopMeter, meter_for, name_of
from rlvid.rewards.registry import open_scorer

LUMA = (0.2126, 0.7152, 0.0722)
"""Rec. 709 weights of R, G, B (ITU-R BT.709-6, item 3.2)."""
ItemId = tuple[int, int]
"""(ticket of the group in this pool, index of the clip in its group); unique in a pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupScores:
    """What the scorers said of one group."""

    scores: tuple[Score, ...]
    """Scorer by scorer in the recipe's order, within each by rollout index."""
    decode_s: float
    score_s: float
    """Seconds of scorers' work, its share of each batch; scorers work side by side."""
    guards: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Guard to [G] values, one a clip (`critics.guards`); none of clips that were given."""
    flops: Mapping[str, float] = field(default_factory=dict)
    """Scorer to the FLOPs of its scores, 0 of those that were known before; without the scorers of
    which some are not known (`flop_count`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreItem:
    """One clip of a call."""

    item_id: ItemId
    prompt: Prompt
    source: int
    """Which of the call's frame arrays it lies in."""
    row: int
    """Place in that array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemResult:
    """What became of one clip; it carries the id that came with the clip."""

    item_id: ItemId
    value: float | None
    error: str = ""
    is_failure: bool = False
    """True when the scorer raised, so that another attempt may do better; NaN is a verdict."""
    is_late: bool = False
    """The failure is that the scorer's own time is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerInfo:
    """What is known of a scorer once it is open."""

    clip_spec: ClipSpec
    serving: Serving
    version: str
    """Digest of class, settings, source and what the scorer says of itself."""
    is_groupwise: bool
    uses_server: bool


class ScorerWorker:
    """One opened scorer.

    The border at which a scorer's exception is caught is here and nowhere else: it becomes a
    missing score with its text. A result of the wrong shape is a broken contract and stops the
    run, since nobody can say which number belongs to which video.
    """

    def __init__(
        self,
        scorer: Reward | GroupReward,
        *,
        label: str,
        device: str = "cpu",
        version: str = "",
        meter: FlopMeter | None = None,
    ) -> None:
        """`meter` None: nobody asks for FLOPs."""
        self._scorer = scorer
        self._where = f"rewards {label!r}"
        self._device = device
        self._version = version
        self._meter = meter

    def info(self) -> ScorerInfo:
        return ScorerInfo(
            clip_spec=self._scorer.clip_spec,
            serving=serving_of(self._scorer),
            version=self._version,
            is_groupwise=isinstance(self._scorer, GroupReward),
            uses_server=isinstance(self._scorer, UsesServer),
        )

    @property
    def device_name(self) -> str:
        """Name of the GPU that it scores on, "" without one."""
        return name_of(self._device)

    def connect(self, endpoints: Sequence[Endpoint]) -> None:
        if isinstance(self._scorer, UsesServer):
            self._scorer.connect(endpoints)

    def score(
        self, items: Sequence[ScoreItem], frames: Sequence[Frames], *, fps: float
    ) -> list[ItemResult]:
        """Score clips; of a group-wise scorer they are one whole group.

        A batch on which the scorer raises is scored once more clip by clip, so that one bad clip
        does not blank its neighbours; not when it was late, since each clip may be as late again.

        Args:
            frames: [G, T, H, W, 3] uint8 arrays that the items lie in, all of one clip size.

        Raises:
            RewardError: the clips are not what the scorer declared, or its answer is malformed.
        """
        clips = np.stack([frames[item.source][item.row] for item in items])
        shape = (clips.shape[1], clips.shape[2], clips.shape[3])
        check_clip(self._scorer.clip_spec, shape, fps=fps, where=self._where)
        videos = self._as_declared(clips)
        results = self._attempt(items, videos)
        is_single = len(items) == 1 or isinstance(self._scorer, GroupReward)
        if is_single or not results[0].is_failure or results[0].is_late:
            return results
        return [
            result
            for number, item in enumerate(items)
            for result in self._attempt([item], videos[number : number + 1])
        ]

    def flops(
        self, items: Sequence[ScoreItem], frames: Sequence[Frames], *, took_s: float
    ) -> float | None:
        """Return what scoring these clips takes, None where that is not known.

        The first of each shape are scored once more for it: a clip, or a group of a group-wise
        scorer, whose FLOPs may grow faster than its clips.

        Args:
            took_s: seconds of their call.
        """
        if self._meter is None:
            return None
        if not items:
            return 0.0
        is_group = isinstance(self._scorer, GroupReward)
        counted = items if is_group else items[:1]
        shape = (len(counted), *frames[items[0].source].shape[1:])

        def call() -> None:
            clips = np.stack([frames[item.source][item.row] for item in counted])
            self._ask(counted, self._as_declared(clips))

        found = self._meter.of(shape, call, took_s=took_s)
        return None if found is None else found * (len(items) / len(counted))

    def _as_declared(self, clips: Frames) -> Tensor:
        return as_declared(clips, self._scorer.clip_spec).to(self._device)

    def _ask(self, items: Sequence[ScoreItem], videos: Tensor) -> Tensor:
        with torch.no_grad():
            if isinstance(self._scorer, GroupReward):
                return self._scorer.score_group(videos, items[0].prompt)
            return self._scorer.score(videos, [item.prompt for item in items])

    def _attempt(self, items: Sequence[ScoreItem], videos: Tensor) -> list[ItemResult]:
        try:
            result = self._ask(items, videos)
        except Exception as error:  # whatever a plug-in raises is a missing score, and counted
            text = f"{type(error).__name__}: {error}"
            is_late = isinstance(error, RewardTimeoutError)
            return [
                ItemResult(
                    item_id=item.item_id, value=None, error=text, is_failure=True, is_late=is_late
                )
                for item in items
            ]
        check_result(result, num_videos=len(items), where=self._where)
        return [
            _result(item.item_id, value) for item, value in zip(items, result.tolist(), strict=True)
        ]


def open_scorer_worker(
    config: ScorerConfig, position: int, *, counts_flops: bool = False
) -> ScorerWorker:
    """Open the scorer of `rewards.scorers[position]`.

    Args:
        counts_flops: have them counted where it computes itself, on a device of known peak.
    """
    scorer = open_scorer(config, f"rewards.scorers.{position}")
    serving = serving_of(scorer)
    # A scorer in another interpreter moves its clips itself; here they would move for nothing.
    device = "cpu" if config.python else config.device or serving.device
    meter = None
    if counts_flops and not isinstance(scorer, UsesServer):
        deadline_s = config.deadline_s or serving.deadline_s
        meter = meter_for(device, f"rewards {config.label!r}", deadline_s=deadline_s)
    return ScorerWorker(
        scorer,
        label=config.label,
        device=device,
        version=scorer_version(config, scorer),
        meter=meter,
    )


def timed_score(
    worker: ScorerWorker, items: Sequence[ScoreItem], frames: Sequence[Frames], fps: float
) -> tuple[list[ItemResult], CallCost]:
    """Return the results and what they took."""
    started = time.perf_counter()
    results = worker.score(items, frames, fps=fps)
    seconds = time.perf_counter() - started
    answered = [i for i, result in zip(items, results, strict=True) if not result.is_failure]
    flops = worker.flops(answered, frames, took_s=seconds)
    return results, CallCost(seconds=seconds, flops=flops)


def as_declared(clips: Frames, spec: ClipSpec) -> Tensor:
    """[B, T, H, W, 3] uint8 -> [B, T, C, H, W] float32 in the colours and range of `spec`."""
    videos = torch.from_numpy(np.ascontiguousarray(clips)).permute(0, 1, 4, 2, 3).float() / 255.0
    if spec.colour == "grey":
        videos = (videos * torch.tensor(LUMA).view(3, 1, 1)).sum(dim=2, keepdim=True)
    black, white = spec.value_range
    if (black, white) != (0.0, 1.0):
        videos = black + (white - black) * videos
    return videos.contiguous()


def check_clip(
    spec: ClipSpec,
    shape: tuple[int, int, int],
    *,
    fps: float,
    where: str,
    is_submitted: bool = False,
) -> None:
    """Raise RewardError when clips of (T, H, W) are not what the scorer declared it needs.

    Args:
        is_submitted: somebody sent the clips; they are not the recipe's model's.
    """
    frames, height, width = shape
    given = {"fps": fps, "num_frames": frames, "height": height, "width": width}
    wanted = {name: getattr(spec, name) for name in given}
    wrong = [name for name, value in wanted.items() if value not in (None, given[name])]
    needs = [f"{name} {wanted[name]:g}" for name in wrong]
    has = [f"{name} {given[name]:g}" for name in wrong]
    if spec.min_frames is not None and frames < spec.min_frames:
        needs.append(f"min_frames {spec.min_frames}")
        has.append(f"frames {frames}")
    if needs:
        maker = "the clips submitted have" if is_submitted else "the model makes"
        remedy = "Submit such clips" if is_submitted else "Change the model section"
        raise RewardError(
            f"{where}: needs clips with {', '.join(needs)}, {maker} {', '.join(has)}. "
            f"{remedy} or {'ask other scorers' if is_submitted else 'remove the scorer'}."
        )


def check_result(result: Tensor, *, num_videos: int, where: str) -> None:
    """Raise RewardError unless `result` is a float tensor [num_videos]."""
    if not isinstance(result, Tensor) or not result.is_floating_point():
        got = f"{result.dtype} tensor" if isinstance(result, Tensor) else type(result).__name__
        raise RewardError(f"{where}: returned a {got}; score() must return a float32 tensor.")
    if tuple(result.shape) != (num_videos,):
        raise RewardError(
            f"{where}: returned shape {tuple(result.shape)} for {num_videos} videos; "
            f"score() must return one number per video, in order."
        )


def _result(item_id: ItemId, value: float) -> ItemResult:
    """A score; one that is NaN or infinite is missing."""
    if not math.isfinite(value):
        return ItemResult(item_id=item_id, value=None, error=f"returned {value}")
    return ItemResult(item_id=item_id, value=value)
