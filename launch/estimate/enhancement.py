"""The work of phase prompt_enhancement: rewrites written, rendered, judged and learned from.

With S steps of P prompts and G rewrites each, c clips a rewrite and w parameters of the rewriter, a
step has P G rewrites of at most `max_new_tokens` tokens t, and P G c clips. A token takes

    writing     2 w
    training    2 w + 6 w, or 4 w of a LoRA: the behaviour before the first update, then a forward
                and its backward; 2 w more with a KL to the rewriter it started from

Answers end before t, so this is an upper bound; reading the prompt, the cold start and held-out
measurements are left out. Of a rewriter whose folder is not here only the clips are counted.
"""

from __future__ import annotations

from collections.abc import Iterator

from rlvid.config import Recipe
from rlvid.launch.estimate.records import LEARNER, REWRITER, Counted, Work
from rlvid.launch.estimate.sampling import judged, rendered
from rlvid.launch.memory import enhancement_guidance, rewriter_parameters


def enhancement_work(recipe: Recipe, counted: Counted) -> Iterator[Work]:
    """Yield writing, rendering, judging and training, one after the other in each step."""
    config, assumed = recipe.prompt_enhancement, counted.assumed
    rewrites = config.num_steps * config.prompts_per_step * config.group_size
    tokens = rewrites * config.rewriter.max_new_tokens
    size = rewriter_parameters(config.rewriter) or None
    amount = f"{rewrites:,} rewrites x {config.rewriter.max_new_tokens} tokens"
    yield Work(
        what="write",
        amount=amount,
        flops=None if size is None else 2 * size * tokens,
        mfu=assumed.writer_mfu,
        role=REWRITER if config.sampler.kind == "vllm" else LEARNER,
    )
    num_clips = rewrites * config.clips_per_rewrite
    yield from rendered(
        recipe,
        counted,
        num_clips=num_clips,
        num_prompts=rewrites,
        num_steps=config.num_denoising_steps,
        guidance_scale=enhancement_guidance(recipe),
    )
    yield from judged(
        recipe,
        counted,
        num_clips=num_clips,
        group_size=config.clips_per_rewrite,
        own_questions=False,
    )
    learned = 4 if config.learner.mode == "lora" else 6
    passes = 2 + learned * config.algorithm.num_updates
    passes += 2 * bool(config.algorithm.kl_coefficient)
    yield Work(
        what="train",
        amount=amount,
        flops=None if size is None else passes * size * tokens,
        mfu=assumed.training_mfu,
        role=LEARNER,
        stage=2,
    )
