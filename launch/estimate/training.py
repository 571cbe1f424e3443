"""The work of the phases that train: sft, dpo and grpo; distillation is beside this file.

Flow matching takes a forward and a backward of every row, and another forward of the layers where
activations are recomputed. FLOPs of a row are those of `rlvid.observability.flops`. A step of dpo
has two rows for each of its pairs and noise levels, and a forward of the reference for each row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from rlvid.config import LearnerConfig, Recipe
from rlvid.launch.estimate.records import ACTORS, LEARNER, Counted, Work
from rlvid.launch.estimate.sampling import decoding, judged, num_rendered
from rlvid.launch.memory import dpo_forward_rows, dpo_pairs, sft_rows
from rlvid.launch.planner import forwards_per_step
from rlvid.observability.flops import RowFlops


def learned_flops(row: RowFlops, learner: LearnerConfig) -> int:
    """Return what a device does for one row that is learned from, recomputation included."""
    once = row.learned(base_is_frozen=learner.mode == "lora")
    return once + learner.activation_checkpointing * (row.linear + row.text + row.attention)


def grpo_work(recipe: Recipe, counted: Counted) -> Iterator[Work]:
    """Yield sampling, scoring and training; evaluations during training are left out."""
    steps, rollout, assumed = recipe.grpo.num_steps, recipe.rollout, counted.assumed
    sampling, learning = forwards_per_step(recipe)
    num_clips = steps * rollout.groups_per_step * rollout.group_size
    yield Work(
        what="denoise",
        amount=f"{steps:,} steps x {sampling:.0f} forwards",
        flops=steps * sampling * counted.row.forward,
        mfu=assumed.sampling_mfu,
        role=ACTORS,
        stage=1,
    )
    yield decoding(counted, num_clips)
    yield from judged(
        recipe, counted, num_clips=num_clips, group_size=rollout.group_size, own_questions=False
    )
    yield Work(
        what="train",
        amount=f"{steps:,} steps x {learning:.0f} rows",
        flops=steps * learning * learned_flops(counted.row, recipe.learner),
        mfu=assumed.training_mfu,
        role=LEARNER,
        stage=1 if rollout.max_staleness else 2,
    )


def sft_work(recipe: Recipe, counted: Counted) -> Iterator[Work]:
    """Yield encoding clips, then training with the captions it encodes on the way."""
    sft, assumed = recipe.sft, counted.assumed
    encoded = num_encoded(recipe)
    if encoded:
        encode = counted.clip.encode
        yield Work(
            what="encode real clips" if sft.anchor.beta else "encode clips",
            amount=f"{encoded:,} clips",
            flops=None if encode is None else encoded * encode,
            mfu=assumed.vae_mfu,
            role=LEARNER,
        )
    rows = sft.num_steps * sft_rows(recipe)
    clips = f"{sft.batch_size} clips"
    if sft.anchor.beta:
        clips = f"({sft.batch_size} + {sft.anchor.batch_size} real) clips"
    yield Work(
        what="train",
        amount=f"{sft.num_steps:,} steps x {clips}{_epochs(recipe)}",
        flops=rows * learned_flops(counted.row, sft.learner),
        mfu=assumed.training_mfu,
        role=LEARNER,
        stage=1,
    )
    yield Work(
        what="encode captions",
        amount=f"at most {rows:,}",
        flops=rows * counted.clip.text,
        mfu=assumed.sampling_mfu,
        role=LEARNER,
        stage=1,
    )


def dpo_work(recipe: Recipe, counted: Counted) -> Iterator[Work]:
    """Yield what the reference answers and training on pairs, with the captions encoded for both.

    How many videos a folder of pairs holds is not known before it is read: encoding them is left
    out. Clips of a data set are latents.
    """
    dpo, assumed = recipe.dpo, counted.assumed
    pairs = dpo.num_steps * dpo_pairs(dpo)
    rows = pairs * 2 * dpo.forward.num_noise_levels
    amount = f"{dpo.num_steps:,} steps x {dpo.batch_size} pairs"
    levels = f" x {dpo.forward.num_noise_levels} levels" * (dpo.forward.num_noise_levels > 1)
    yield Work(
        what="reference",
        amount=f"{amount} x 2 clips{levels}",
        flops=rows * counted.row.forward,
        mfu=assumed.sampling_mfu,
        role=LEARNER,
    )
    yield Work(
        what="train",
        amount=f"{amount} x 2 clips{levels}{_pair_epochs(recipe)}",
        flops=rows * learned_flops(counted.row, dpo.learner),
        mfu=assumed.training_mfu,
        role=LEARNER,
    )
    captions = 2 * pairs * math.ceil(2 * dpo.forward.num_noise_levels / dpo_forward_rows(dpo))
    yield Work(
        what="encode captions",
        amount=f"at most {captions:,}",
        flops=captions * counted.clip.text,
        mfu=assumed.sampling_mfu,
        role=LEARNER,
    )


def num_encoded(recipe: Recipe) -> int:
    """Return the clips that phase sft encodes by the VAE; those of a data set are latents.

    0 for a folder of clips: how many it holds is not known before it is read.
    """
    sft, real = recipe.sft, recipe.data_engine.real
    if sft.clips.startswith("artifact:"):
        return real.num_clips if sft.anchor.beta else 0
    return sft.num_clips if sft.clips == "tiny_world" else 0


def _epochs(recipe: Recipe) -> str:
    sft = recipe.sft
    if not sft.clips.startswith("artifact:"):
        return ""
    _, made = num_rendered(recipe)
    share = sft.num_steps * sft.batch_size / (made * sft.weighting.best_frac)
    return f", {share:.2f} epochs"


def _pair_epochs(recipe: Recipe) -> str:
    """Return how often a pair of the run's data set is seen; clips that score alike make none."""
    dpo, engine = recipe.dpo, recipe.data_engine
    if not dpo.pairs.startswith("artifact:"):
        return ""
    each = engine.clips_per_prompt // 2
    pairs = engine.prompts.num_prompts * min(each, dpo.objective.max_pairs or each)
    return f", at least {dpo.num_steps * dpo.batch_size / pairs:.2f} epochs" if pairs else ""
