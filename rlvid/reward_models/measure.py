"""What a reward model is worth on pairs it has not seen: accuracy, calibration, z-scores.

Letters: N pairs, P parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlvid.evaluation.statistics import paired_bootstrap
from rlvid.reward_models import PARTS
from rlvid.reward_models.losses import spread_probability, tie_probabilities
from rlvid.reward_models.network import Judgement, RewardModel
from rlvid.reward_models.pairs import PairSet, PreferencePair
from rlvid.seeds import derive_seed

NUM_BINS = 5
"""Of the reliability table, equal widths over [0, 1]."""
MAX_CLIPS = 2000
"""Clips that the z-score constants are taken from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartMeasure:
    """One part on one set of pairs."""

    part: str
    accuracy: float
    """Share of the pairs with a winner in which it gets the higher mean score."""
    low: float
    high: float
    """95 % interval that resamples whole prompts."""
    num_pairs: int
    tie_accuracy: float | None
    """Share of all labelled pairs whose outcome (A, tie, B) is the likeliest; ties head only."""
    calibration_error: float
    """Mean |predicted - observed| over the bins, weighted by their pairs; 0 is perfect."""
    reliability: tuple[tuple[float, float, int], ...]
    """Of each bin with pairs: mean P(A > B | no tie), share of A's wins, pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZScore:
    """Mean and standard deviation of a part's scores on training clips."""

    mean: float
    std: float


@torch.no_grad()
def judge_pairs(
    model: RewardModel, pairs: PairSet, *, device: torch.device
) -> tuple[Judgement, Judgement]:
    """Return the judgements of all A and all B clips, [N, P]; one clip at a time, as served."""
    model.eval()
    known: dict[tuple[int, str], Judgement] = {}
    for pair in pairs.pairs:
        for index in (pair.first, pair.second):
            if (index, pair.prompt) not in known:
                video = pairs.videos([index]).to(device)
                known[index, pair.prompt] = model(video, [pair.prompt])
    sides = [[known[p.first, p.prompt] for p in pairs.pairs]]
    sides.append([known[p.second, p.prompt] for p in pairs.pairs])
    first, second = (_stacked(side) for side in sides)
    return first, second


def measure_pairs(
    model: RewardModel,
    pairs: PairSet,
    *,
    tie_k: float,
    seed: int,
    num_bootstrap: int,
    device: torch.device,
) -> tuple[PartMeasure, ...]:
    """Return a measure for each part that has pairs with a winner.

    Each pair is turned round or not by its index, since sources tend to name the better clip
    first and a model that always says A would look right.
    """
    turned = PairSet(clips=pairs.clips, pairs=oriented(pairs.pairs, seed))
    first, second = judge_pairs(model, turned, device=device)
    labels = torch.tensor([pair.labels for pair in turned.pairs])
    prompts = [pair.prompt for pair in turned.pairs]
    a_wins, tie, b_wins = probabilities(first, second, tie_k)
    return tuple(
        _measure_part(part, a_wins[:, i], None if tie is None else tie[:, i], b_wins[:, i],
                      labels[:, i], prompts, num_bootstrap)
        for i, part in enumerate(PARTS)
        if bool((labels[:, i].abs() == 1).any())
    )  # fmt: skip


def probabilities(
    first: Judgement, second: Judgement, tie_k: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return P(A > B), P(tie) (None for a head that knows none) and P(B > A), each [N, P]."""
    if first.spread is None or second.spread is None:
        a_wins, tie, b_wins = tie_probabilities(first.mean - second.mean, tie_k)
        return a_wins.exp(), tie.exp(), b_wins.exp()
    log_a = spread_probability(first.mean, second.mean, first.spread, second.spread)
    return log_a.exp(), None, 1.0 - log_a.exp()


def oriented(pairs: Sequence[PreferencePair], seed: int) -> tuple[PreferencePair, ...]:
    """Return the pairs, about half of them with A and B exchanged."""
    return tuple(
        pair.swapped() if derive_seed(seed, "turn", index) & 1 else pair
        for index, pair in enumerate(pairs)
    )


def z_scores(model: RewardModel, pairs: PairSet, *, device: torch.device) -> dict[str, ZScore]:
    """Return the constants of each part from training pairs (VideoAlign z-scores by these)."""
    means, count = [], 0
    for pair in pairs.pairs:
        single = PairSet(clips=pairs.clips, pairs=(pair,))
        for side in judge_pairs(model, single, device=device):
            means.append(side.mean[0])
            count += 1
        if count >= MAX_CLIPS:
            break
    table = torch.stack(means).double()
    return {
        part: ZScore(mean=float(table[:, i].mean()), std=max(float(table[:, i].std()), 1e-6))
        for i, part in enumerate(PARTS)
    }


def to_json(measures: Sequence[PartMeasure]) -> list[dict[str, Any]]:
    """Return the measures as JSON values."""
    return [asdict(measure) for measure in measures]


def _measure_part(
    part: str,
    a_wins: Tensor,
    tie: Tensor | None,
    b_wins: Tensor,
    label: Tensor,
    prompts: Sequence[str],
    num_bootstrap: int,
) -> PartMeasure:
    decided = label.abs() == 1
    chance = (a_wins / (a_wins + b_wins))[decided].double().numpy()
    won = (label[decided] > 0).double().numpy()
    right = np.where(chance == 0.5, 0.5, (chance > 0.5) == (won > 0.5)).astype(np.float64)
    groups = [prompt for prompt, is_decided in zip(prompts, decided, strict=True) if is_decided]
    low = high = float(right.mean())
    if len(set(groups)) >= 2:
        interval = paired_bootstrap(
            np.zeros_like(right), right, groups, num_bootstrap=num_bootstrap
        )
        low, high = interval.low, interval.high
    tie_accuracy = None
    if tie is not None:
        labelled = ~label.isnan()
        likeliest = 1 - torch.stack([a_wins, tie, b_wins]).argmax(dim=0)
        tie_accuracy = float((likeliest[labelled] == label[labelled]).double().mean())
    table = _reliability(chance, won)
    error = sum(abs(said - seen) * count for said, seen, count in table) / len(won)
    return PartMeasure(
        part=part,
        accuracy=float(right.mean()),
        low=low,
        high=high,
        num_pairs=len(won),
        tie_accuracy=tie_accuracy,
        calibration_error=error,
        reliability=table,
    )


def _reliability(chance: Any, won: Any) -> tuple[tuple[float, float, int], ...]:
    bins = np.minimum((chance * NUM_BINS).astype(int), NUM_BINS - 1)
    return tuple(
        (float(chance[bins == b].mean()), float(won[bins == b].mean()), int((bins == b).sum()))
        for b in range(NUM_BINS)
        if (bins == b).any()
    )


def _stacked(rows: Sequence[Judgement]) -> Judgement:
    spreads = [row.spread for row in rows if row.spread is not None]
    return Judgement(
        mean=torch.cat([row.mean for row in rows]).cpu(),
        spread=torch.cat(spreads).cpu() if spreads else None,
    )
