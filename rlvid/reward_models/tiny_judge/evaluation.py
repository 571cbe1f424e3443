"""Measures the tiny vision-language model: AUC of P(yes) by kind of question, and its captions.

Held-out clips, of facts and seeds no training clip has. Each question is asked plainly and
negated, as a judge that says yes to everything would pass the one and fail the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from rlvid.data.tiny_world.grammar import caption
from rlvid.data.tiny_world.questions import (
    KINDS,
    NATURAL_MOTION,
    YES,
    Question,
    ask,
    kinds_of,
)
from rlvid.data.tiny_world.situations import FAMILIES
from rlvid.evaluation.statistics import auc
from rlvid.models.tiny.vlm_layout import JudgeLayout
from rlvid.models.tiny.vlm_packed import Asked, Packer, packed_hidden
from rlvid.reward_models.tiny_judge.clips import ClipPool, draw_pool
from rlvid.reward_models.tiny_judge.training import to_images

HELDOUT_SEED = 10**9
"""First seed of the clips that are measured; training uses small ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A question with the probability of yes the model gave."""

    question: Question
    prob: float


def heldout_pools(
    per_family: int,
    layout: JudgeLayout,
    *,
    seed: int = HELDOUT_SEED,
    alter: Callable[[Tensor], Tensor] | None = None,
) -> list[ClipPool]:
    """Return that many clips of several objects and of events in order; of single ones, double.

    `alter` changes every clip [T, 3, H, W] in [0, 1], as a generator's decoder would.
    """
    pools = []
    for number, family in enumerate(FAMILIES):
        count = per_family * (2 if family == "single" else 1)
        start = seed + number * 10**6
        seeds = range(start, start + count)
        pools.append(
            draw_pool(seeds, "heldout", layout, family=family, alter=alter, alter_frac=1.0)
        )
    return pools


@torch.no_grad()
def answer(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    pool: ClipPool,
    questions: Sequence[Sequence[Question]],
    layout: JudgeLayout,
    *,
    batch_size: int = 16,
) -> list[list[Answered]]:
    """Return P(yes) = p(Yes) / (p(Yes) + p(No)) of every question, by clip."""
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in (layout.yes, layout.no))
    probs: list[list[Answered]] = []
    packer: Packer | None = None
    for start in range(0, len(questions), batch_size):
        asked = questions[start : start + batch_size]
        frames = pool.frames[start : start + batch_size].float() / 255.0
        images = to_images(frames, layout)
        if packer is None:
            height, width = images.shape[-2:]
            packer = Packer(
                tokenizer, model, num_images=images.shape[1], image_size=(height, width)
            )
        packed = packer.pack([[Asked(q.text) for q in clip] for clip in asked])
        hidden, _ = packed_hidden(model, packed, images, packer.image_token)
        for row, clip in enumerate(asked):
            logits: Tensor = model.lm_head(hidden[row, packed.first[row, : len(clip)]])
            prob = torch.sigmoid(logits[:, yes] - logits[:, no]).tolist()
            probs.append([Answered(question=q, prob=p) for q, p in zip(clip, prob, strict=True)])
    return probs


def measure(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    layout: JudgeLayout,
    pools: Sequence[ClipPool],
    *,
    suffix: str | None = None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Return for each kind: auc, auc_plain, auc_negated, accuracy, yes_bias, num (questions).

    `yes_bias` is the mean P(yes) less the share of questions whose answer is yes.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[Answered]] = {kind: [] for kind in KINDS}
    for pool in pools:
        questions = [
            [q for kind in kinds_of(s) for q in ask(s, kind, rng, suffix=suffix)]
            for s in pool.situations
        ]
        for clip in answer(model, tokenizer, pool, questions, layout):
            for item in clip:
                found[item.question.kind].append(item)
    return {kind: _summary(items) for kind, items in found.items() if items}


def breakage_auc(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    layout: JudgeLayout,
    pool: ClipPool,
) -> dict[str, float]:
    """Return for each breakage of the single clips the AUC of true clips over broken ones.

    Asked plainly, "Does everything move as real objects do?".
    """
    rng = np.random.default_rng(0)
    questions = [
        [Question(kind="physics", text=NATURAL_MOTION, answer=ask(s, "physics", rng)[0].answer)]
        for s in pool.situations
    ]
    answers = answer(model, tokenizer, pool, questions, layout)
    probs: dict[str, list[float]] = {}
    for situation, (item,) in zip(pool.situations, answers, strict=True):
        probs.setdefault(situation.breakage, []).append(item.prob)
    true = probs.pop("")
    return {name: auc(true, found, num_bootstrap=1).value for name, found in sorted(probs.items())}


def _summary(items: Sequence[Answered]) -> dict[str, float]:
    truth = np.array([item.question.answer == YES for item in items])
    prob = np.array([item.prob for item in items])
    negated = np.array([item.question.negated for item in items])
    return {
        "auc": _auc(prob, truth),
        "auc_plain": _auc(prob[~negated], truth[~negated]),
        "auc_negated": _auc(prob[negated], truth[negated]),
        "accuracy": float(np.mean((prob > 0.5) == truth)),
        "yes_bias": float(np.mean(prob) - np.mean(truth)),
        "num": len(items),
    }


def _auc(prob: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    return auc(prob[truth], prob[~truth], num_bootstrap=1).value


@torch.no_grad()
def caption_accuracy(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    layout: JudgeLayout,
    pool: ClipPool,
    *,
    max_words: int = 24,
) -> float:
    """Return the share of true single clips whose whole greedy caption is the right sentence."""
    rows = [i for i, s in enumerate(pool.situations) if s.family == "single" and not s.breakage]
    images = to_images(pool.frames[rows].float() / 255.0, layout)
    height, width = images.shape[-2:]
    packer = Packer(tokenizer, model, num_images=images.shape[1], image_size=(height, width))
    said = [""] * len(rows)
    words = [list[int]() for _ in rows]
    for _ in range(max_words):
        packed = packer.pack([[Asked("Describe the video.", text)] for text in said])
        hidden, _ = packed_hidden(model, packed, images, packer.image_token)
        last = packed.first[:, 0] + torch.tensor([len(w) for w in words])
        chosen = model.lm_head(hidden[torch.arange(len(rows)), last]).argmax(dim=1).tolist()
        for row, token in enumerate(chosen):
            if token != tokenizer.eos_token_id and (not words[row] or words[row][-1] >= 0):
                words[row].append(token)
        new = [tokenizer.decode(w) for w in words]
        if new == said:
            break
        said = new
    right = [text == caption(pool.situations[i].facts) for text, i in zip(said, rows, strict=True)]
    return float(np.mean(right))
