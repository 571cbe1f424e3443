"""The plain worker of the reward pool: decodes a group once and runs every scorer on its clips.

Letters: G rollouts in a group, T pixel frames, H W pixels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvid.config.model import ModelConfig
from rlvid.config.rewards import RewardsConfig
from rlvid.records import RolloutGroup, Score
from rlvid.rewards.base import ClipSpec, GroupReward, Reward, RewardError
from rlvid.rewards.registry import open_scorer

Decoder = Callable[[Tensor], Tensor]
"""latents [B, C, F, H, W] -> videos [B, T, 3, H, W] float32 in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupScores:
    """What the scorers said of one group."""

    scores: tuple[Score, ...]
    """Scorer by scorer in the recipe's order, within each by rollout index."""
    decode_s: float
    score_s: float


class RewardWorker:
    """Holds the opened scorers and the decoder.

    The border at which a scorer's exception is caught is here and nowhere else: it becomes a
    missing score with its text. A result of the wrong shape is a broken contract and stops the
    run, since nobody can say which number belongs to which video.
    """

    def __init__(
        self,
        scorers: Sequence[tuple[str, Reward | GroupReward]],
        decode: Decoder,
        *,
        fps: int,
    ) -> None:
        """`scorers` are (label, scorer) in the recipe's order; `fps` is that of the clips."""
        self._scorers = tuple(scorers)
        self._decode = decode
        self._fps = fps

    def score_group(self, group: RolloutGroup) -> GroupScores:
        """Score every rollout of the group; RewardError when a scorer breaks its contract."""
        started = time.perf_counter()
        videos = self.videos(group)
        decoded = time.perf_counter()
        scores: list[Score] = []
        for position, (label, scorer) in enumerate(self._scorers):
            where = f"rewards[{position}] {label!r}"
            check_clip(videos, scorer.clip_spec, fps=self._fps, where=where)
            scores += self._run(scorer, videos, group, label=label, where=where)
        return GroupScores(
            scores=tuple(scores),
            decode_s=decoded - started,
            score_s=time.perf_counter() - decoded,
        )

    def videos(self, group: RolloutGroup) -> Tensor:
        """Return the decoded clips of the group, [G, T, 3, H, W] float32 in [0, 1]."""
        with torch.no_grad():
            latents = torch.stack([rollout.latents for rollout in group.rollouts])
            return self._decode(latents).float().cpu()

    def clips(self, group: RolloutGroup) -> Tensor:
        """Return the clips for a log or report, [G, T, 3, H, W] uint8."""
        return (self.videos(group) * 255.0).round().clamp(0, 255).to(torch.uint8)

    def _run(
        self,
        scorer: Reward | GroupReward,
        videos: Tensor,
        group: RolloutGroup,
        *,
        label: str,
        where: str,
    ) -> list[Score]:
        try:
            with torch.no_grad():
                if isinstance(scorer, GroupReward):
                    result = scorer.score_group(videos, group.prompt)
                else:
                    result = scorer.score(videos, [group.prompt] * len(videos))
        except Exception as error:  # whatever a plug-in raises is a missing score, and counted
            text = f"{type(error).__name__}: {error}"
            return [_score(group, r.index, label, None, text) for r in group.rollouts]
        check_result(result, num_videos=len(videos), where=where)
        return [
            _score(group, rollout.index, label, float(value), f"returned {float(value)}")
            for rollout, value in zip(group.rollouts, result, strict=True)
        ]


def open_reward_worker(rewards: RewardsConfig, model: ModelConfig) -> RewardWorker:
    """Open the scorers and the model whose decoder turns latents into clips."""
    from rlvid.models import load_model

    scorers = [
        (config.label, open_scorer(config, f"rewards.scorers.{position}"))
        for position, config in enumerate(rewards.scorers)
    ]
    return RewardWorker(scorers, load_model(model).decode, fps=model.fps)


def check_clip(videos: Tensor, spec: ClipSpec, *, fps: int, where: str) -> None:
    """Raise RewardError when the clips are not what the scorer declared it needs."""
    frames, _, height, width = videos.shape[1:]
    wanted = {"fps": spec.fps, "height": spec.height, "width": spec.width}
    given = {"fps": fps, "height": height, "width": width}
    wrong = [name for name, value in wanted.items() if value not in (None, given[name])]
    if spec.min_frames is not None and frames < spec.min_frames:
        wrong.append("min_frames")
        wanted["min_frames"], given["min_frames"] = spec.min_frames, frames
    if wrong:
        needs = ", ".join(f"{name} {wanted[name]}" for name in wrong)
        has = ", ".join(f"{name.removeprefix('min_')} {given[name]}" for name in wrong)
        raise RewardError(
            f"{where}: needs clips with {needs}, the model makes {has}. "
            "Change the model section or remove the scorer."
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


def _score(group: RolloutGroup, index: int, label: str, value: float | None, error: str) -> Score:
    """A score; one that is None, NaN or infinite is missing, for the reason `error`."""
    missing = value is None or not math.isfinite(value)
    return Score(
        group_id=group.group_id,
        index=index,
        scorer=label,
        value=None if missing else value,
        error=error if missing else None,
    )
