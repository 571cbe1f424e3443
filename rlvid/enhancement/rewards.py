"""What rewrites are worth: form, length, intent, and the videos that were made from them.

R = R_video + R_structure + R_length, each brought to unit spread first (RePrompt,
arXiv:2505.17540), with a part for the user's intent that is ours. Here each part is normalised in
its group, as everywhere in rlvid. Letters: P prompts, G rewrites of a prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlvid.algorithms.advantages import credit
from rlvid.algorithms.base import Credit
from rlvid.config.algorithm import AdvantageConfig
from rlvid.config.enhancement import (
    OWN_PARTS,
    VIDEO_PART,
    IntentConfig,
    LengthConfig,
    RewriteRewardConfig,
)
from rlvid.enhancement.answer import Answer, Malformed
from rlvid.enhancement.intent import intent_drift
from rlvid.enhancement.lexicon import Lexicon
from rlvid.records import Prompt

WELL_FORMED, MALFORMED = 1.0, -1.0
"""Structure rewards of RePrompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScores:
    """What can be said of rewrites without a video, and how often what went wrong."""

    structure: Tensor
    """[P, G] float32, `WELL_FORMED` or `MALFORMED`."""
    length: Tensor
    """[P, G] in [0, 1]; 0 where malformed."""
    intent: Tensor
    """[P, G] in [0, 1]; 0 where malformed."""
    is_malformed: Tensor
    """[P, G] bool; such a rewrite has no prompt and is not rendered."""
    failures: Mapping[str, int]
    """Name of a `Failure` to the number of answers."""
    num_dropped: int
    """Wishes of users that are gone, over all well-formed rewrites."""
    num_contradicted: int


def length_reward(num_words: int, config: LengthConfig) -> float:
    """Return 1 within the bounds, falling linearly to 0 outside of them.

    max(0, 1 - missed / (falloff * bound)), with `missed` the words over or under the nearer bound.
    """
    if num_words < config.min_words:
        missed, bound = config.min_words - num_words, config.min_words
    else:
        missed, bound = max(0, num_words - config.max_words), config.max_words
    return max(0.0, 1.0 - missed / (config.falloff * bound))


def text_scores(
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[Answer]],
    *,
    length: LengthConfig,
    intent: IntentConfig,
    lexicon: Lexicon,
) -> TextScores:
    """Score the answers [P][G] to the prompts [P] by their text alone."""
    sizes = {len(group) for group in answers}
    if len(sizes) > 1:
        raise ValueError(f"text_scores: expected groups of one size, got sizes {sorted(sizes)}")
    table = torch.zeros(3, len(prompts), max(sizes, default=0))
    malformed = torch.zeros(table.shape[1:], dtype=torch.bool)
    failures: Counter[str] = Counter()
    num_dropped = num_contradicted = 0
    for row, (prompt, group) in enumerate(zip(prompts, answers, strict=True)):
        for column, answer in enumerate(group):
            if isinstance(answer, Malformed):
                table[:, row, column] = torch.tensor([MALFORMED, 0.0, 0.0])
                malformed[row, column] = True
                failures[answer.failure.value] += 1
                continue
            drift = intent_drift(prompt, answer.prompt, lexicon, intent.kinds)
            num_dropped += len(drift.dropped)
            num_contradicted += len(drift.contradicted)
            words = length_reward(len(answer.prompt.split()), length)
            table[:, row, column] = torch.tensor([WELL_FORMED, words, drift.reward])
    return TextScores(
        structure=table[0],
        length=table[1],
        intent=table[2],
        is_malformed=malformed,
        failures=dict(failures),
        num_dropped=num_dropped,
        num_contradicted=num_contradicted,
    )


def clip_means(
    scores: Mapping[str, Tensor], places: Sequence[tuple[int, int]], shape: tuple[int, int]
) -> dict[str, Tensor]:
    """Return the mean score of each rewrite's clips, [P, G] by scorer, NaN where there is none.

    One missing clip leaves the rewrite unjudged: its mean would be over other noise than that of
    the rewrites it is compared with.

    Args:
        scores: scorer to [R, C], a row for each rewrite that was rendered; NaN where missing.
        places: [R] row and column of each in the result.
        shape: (P, G).
    """
    result = {}
    for name, values in scores.items():
        if values.shape[0] != len(places):
            raise ValueError(
                f"clip_means: {name!r}: expected {len(places)} rows, one for each rendered "
                f"rewrite, got shape {tuple(values.shape)}"
            )
        table = torch.full(shape, torch.nan)
        for (row, column), mean in zip(places, values.mean(dim=1), strict=True):
            table[row, column] = mean
        result[name] = table
    return result


def reward_parts(
    text: TextScores,
    video: Mapping[str, Tensor],
    weights: Mapping[str, float],
    config: RewriteRewardConfig,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the parts of the reward, [P, G] each and NaN where unknown, and their weights.

    A malformed answer has no video, and leaving it out would leave it unpunished. It gets the
    lowest video score of its group, so that no part of it lies above a well-formed one's. A
    well-formed rewrite whose scorer failed stays unknown.

    Args:
        video: scorer to [P, G], higher is better, NaN where missing.
        weights: scorer to its weight in `rewards.scorers`; those of weight 0 are left out.
    """
    own = {VIDEO_PART, *OWN_PARTS} & set(video)
    if own:
        raise ValueError(
            f"prompt_enhancement.reward: a scorer is named {sorted(own)[0]!r}, which is a part of "
            "the reward already. Give it another `name` in rewards.scorers."
        )
    active = {name: weight for name, weight in weights.items() if weight}
    # Signed, so that "lowest" is the worst for a scorer of negative weight as well.
    signed = {name: video[name] * (1.0 if w > 0 else -1.0) for name, w in active.items()}
    parts_weights = {name: abs(weight) * config.video_weight for name, weight in active.items()}
    if config.combine == "sum" and active:
        total = torch.stack([abs(w) * signed[name].double() for name, w in active.items()])
        signed, parts_weights = {VIDEO_PART: total.sum(dim=0)}, {VIDEO_PART: config.video_weight}
    parts = {name: _with_lowest(values, text.is_malformed) for name, values in signed.items()}
    parts |= {"structure": text.structure, "length": text.length, "intent": text.intent}
    parts_weights |= {
        "structure": config.structure_weight,
        "length": config.length_weight,
        "intent": config.intent_weight,
    }
    return parts, parts_weights


def rewrite_credit(
    text: TextScores,
    video: Mapping[str, Tensor],
    weights: Mapping[str, float],
    *,
    reward: RewriteRewardConfig,
    advantage: AdvantageConfig,
) -> Credit:
    """Return the advantage of every rewrite among those of its prompt; see `reward_parts`."""
    parts, parts_weights = reward_parts(text, video, weights, reward)
    return credit(parts, parts_weights, advantage)


def _with_lowest(values: Tensor, is_malformed: Tensor) -> Tensor:
    """Give malformed places the lowest known value of their group, NaN where none is known."""
    known = torch.where(values.isnan() | is_malformed, torch.inf, values)
    lowest = known.amin(dim=1, keepdim=True)
    lowest = torch.where(lowest.isinf(), torch.nan, lowest).expand_as(values)
    return torch.where(is_malformed, lowest, values)
