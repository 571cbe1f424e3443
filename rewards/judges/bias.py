"""Two known faults of vision-language judges, measured: saying yes, and not seeing time.

`yes_bias_report` asks questions and their negations; `time_report` shuffles frames. The second
takes any scorer that scores clips one by one, with or without a server.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlvid.evaluation.statistics import auc
from rlvid.records import Prompt
from rlvid.rewards.base import Endpoint, Reward
from rlvid.rewards.calibration.clip_sets import scores_of
from rlvid.rewards.judges.scorers import VlmJudge
from rlvid.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class YesBias:
    """How one question and its negation were answered."""

    question: str
    mean: float
    """Mean of P(yes|q) + P(yes|not q) - 1: 0 consistent, 1 always yes, -1 always no."""
    spread: float
    """Its standard deviation over clips; what debiasing cannot remove."""
    num_clips: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeReport:
    """How the scores of clips and of the same frames in another order compare."""

    auc: float
    """Probability that a clip in order scores above a shuffled one; 0.5: blind to time."""
    low: float
    high: float
    """95 % interval."""
    changed: float
    """Mean |score - score of the shuffled clip|; 0: the frames' order is not looked at at all."""
    num_clips: int
    num_missing: int
    """Clips left out because one of the two scores is missing."""


def yes_bias_report(
    config: VlmJudge.Config,
    endpoints: Sequence[Endpoint],
    videos: Tensor,
    prompts: Sequence[Prompt],
) -> list[YesBias]:
    """Measure every question of the file that has a negation.

    Args:
        videos: [B, T, 3, H, W] float32 in [0, 1].
    """
    settings = dataclasses.replace(config, mode="questions", debias=True)
    judge = VlmJudge(settings)
    judge.connect(endpoints)
    try:
        verdicts = judge.explain(videos, prompts)
    finally:
        judge.close()
    found: dict[str, list[float]] = {}
    for verdict in verdicts:
        for name, value in verdict.parts.items():
            question, _, kind = name.rpartition("/")
            if kind == "yes_bias":
                found.setdefault(question, []).append(value)
    return [
        YesBias(
            question=question,
            mean=float(np.mean(values)),
            spread=float(np.std(values)),
            num_clips=len(values),
        )
        for question, values in sorted(found.items())
    ]


def shuffled(videos: Tensor, *, seed: int) -> Tensor:
    """Return the clips with their frames in another order, [B, T, C, H, W].

    Every frame moves: the order is a random cycle through all of them, its own for each clip.
    """
    num_frames = videos.shape[1]
    if num_frames < 2:
        raise ValueError(f"shuffled: a clip of {num_frames} frame has one order only.")
    result = torch.empty_like(videos)
    for position, video in enumerate(videos):
        rng = np.random.default_rng(derive_seed(seed, "shuffled frames", str(position)))
        cycle = rng.permutation(num_frames)
        order = np.empty(num_frames, dtype=np.int64)
        order[cycle] = np.roll(cycle, 1)
        result[position] = video[torch.from_numpy(order)]
    return result


def time_report(
    scorer: Reward, videos: Tensor, prompts: Sequence[Prompt], *, seed: int
) -> TimeReport:
    """Score clips as they are and with their frames shuffled."""
    true = scores_of(scorer, videos, prompts).double().numpy()
    broken = scores_of(scorer, shuffled(videos, seed=seed), prompts).double().numpy()
    both = np.isfinite(true) & np.isfinite(broken)
    if not both.any():
        return TimeReport(
            auc=math.nan,
            low=math.nan,
            high=math.nan,
            changed=math.nan,
            num_clips=0,
            num_missing=len(true),
        )
    area = auc(true[both], broken[both])
    return TimeReport(
        auc=area.value,
        low=area.low,
        high=area.high,
        changed=float(np.abs(true[both] - broken[both]).mean()),
        num_clips=int(both.sum()),
        num_missing=int((~both).sum()),
    )


def as_rows(report: Sequence[YesBias]) -> list[Mapping[str, float | str]]:
    """Return the report as plain rows, for JSON."""
    return [dataclasses.asdict(row) for row in report]
