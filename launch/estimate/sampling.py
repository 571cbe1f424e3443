"""The work of the phases that sample: data_engine and evaluate, and the parts they share with grpo.

C clips of K denoising steps at g branches (2 with guidance) take C K g forwards of the transformer;
a language model takes two FLOPs for each parameter and token.
"""

from __future__ import annotations

from collections.abc import Iterator

from rlvid.config import Recipe
from rlvid.launch.estimate.judging import askings
from rlvid.launch.estimate.records import ACTORS, DECODER, Counted, Work
from rlvid.launch.heldout import with_judges
from rlvid.launch.memory import branches, engine_guidance, evaluate_guidance, server_parameters

LEAVES_A_STAGE = ("sft", "dpo", "grpo", "prompt_enhancement")
"""Phases that leave a policy or an enhancer; distillation leaves students."""


def num_rendered(recipe: Recipe) -> tuple[int, int]:
    """Return the clips that phase data_engine renders: to find weaknesses, and for its data set."""
    engine = recipe.data_engine
    weakness = engine.weakness
    probed = 0 if weakness.given else weakness.num_prompts * weakness.seeds_per_prompt
    recaptions = min(engine.real.num_recaptions, engine.real.num_clips)
    return probed, engine.prompts.num_prompts * engine.clips_per_prompt + recaptions


def data_engine_work(recipe: Recipe, counted: Counted) -> Iterator[Work]:
    """Yield writing, rendering and judging; real clips are taken in on CPUs and left out."""
    engine, assumed = recipe.data_engine, counted.assumed
    prompts = engine.prompts
    probed, made = num_rendered(recipe)
    if prompts.writer == "llm":
        server = recipe.rewards.servers.get(prompts.llm.server)
        size = server_parameters(server) if server else None
        tokens = prompts.num_prompts * assumed.writer_tokens
        yield Work(
            what="write prompts and questions",
            amount=f"{prompts.num_prompts:,} prompts x {assumed.writer_tokens:,} tokens",
            flops=None if size is None else 2 * size * tokens,
            mfu=assumed.writer_mfu,
            role=prompts.llm.server,
        )
    yield from rendered(
        recipe,
        counted,
        num_clips=probed + made,
        num_prompts=prompts.num_prompts + (engine.weakness.num_prompts if probed else 0),
        num_steps=engine.num_denoising_steps,
        guidance_scale=engine_guidance(recipe),
    )
    yield from judged(
        recipe,
        counted,
        num_clips=probed + made,
        group_size=engine.clips_per_prompt,
        own_questions=prompts.writer == "llm",
    )


def evaluate_work(recipe: Recipe, counted: Counted) -> Iterator[Work]:
    """Yield rendering and judging the held-out clips of two policies, or of every stage."""
    evaluate = recipe.evaluate
    per_policy = evaluate.num_prompts * evaluate.seeds_per_prompt
    in_many, in_few = num_sampled(recipe)
    yield from rendered(
        recipe,
        counted,
        num_clips=in_many * per_policy,
        num_prompts=in_many * evaluate.num_prompts,
        num_steps=evaluate.num_denoising_steps,
        guidance_scale=evaluate_guidance(recipe),
    )
    if in_few:
        yield from rendered(
            recipe,
            counted,
            num_clips=in_few * per_policy,
            num_prompts=in_few * evaluate.num_prompts,
            num_steps=len(recipe.distillation.student_steps),
            guidance_scale=1.0,
        )
    yield from judged(
        with_judges(recipe),
        counted,
        num_clips=(in_many + in_few) * per_policy,
        group_size=evaluate.seeds_per_prompt,
        own_questions=False,
    )


def num_sampled(recipe: Recipe) -> tuple[int, int]:
    """Return how often phase evaluate has its prompts sampled: in many steps, in a student's few.

    Of `evaluate.stages` the columns that the built-in phases before it will leave are counted.
    """
    stages, student = recipe.evaluate.stages, recipe.distillation
    if stages is None:
        return 2, 0
    before = recipe.phases[: recipe.phases.index("evaluate")]
    left = sum(phase in LEAVES_A_STAGE for phase in before)
    students = 0
    if "distillation" in before:
        students = len({"few_step", student.stages[-1]} & set(student.stages))
        students += stages.undistilled_steps is not None
    sets = 1 if stages.vague_prompts is None else 2
    return sets * (1 + left), sets * students


def rendered(
    recipe: Recipe,
    counted: Counted,
    *,
    num_clips: int,
    num_prompts: int,
    num_steps: int,
    guidance_scale: float,
) -> Iterator[Work]:
    """Yield what it takes to make clips of prompts, pixels included."""
    guided = branches(guidance_scale)
    yield Work(
        what="denoise",
        amount=f"{num_clips:,} clips x {num_steps} steps" + " x 2 (guidance)" * (guided == 2),
        flops=num_clips * num_steps * guided * counted.row.forward,
        mfu=counted.assumed.sampling_mfu,
        role=ACTORS,
        stage=1,
    )
    yield Work(
        what="encode prompts",
        amount=f"{num_prompts:,} prompts",
        flops=num_prompts * counted.clip.text,
        mfu=counted.assumed.sampling_mfu,
        role=ACTORS,
        stage=1,
    )
    yield decoding(counted, num_clips)


def decoding(counted: Counted, num_clips: int) -> Work:
    """Return the work of turning latents into pixels, once for all scorers."""
    decode = counted.clip.decode
    return Work(
        what="decode",
        amount=f"{num_clips:,} clips",
        flops=None if decode is None else num_clips * decode,
        mfu=counted.assumed.vae_mfu,
        role=DECODER,
        stage=1,
    )


def judged(
    recipe: Recipe, counted: Counted, *, num_clips: int, group_size: int, own_questions: bool
) -> Iterator[Work]:
    """Yield the work of each server that is asked about clips."""
    asked = askings(recipe.rewards.scorers, group_size=group_size, own_questions=own_questions)
    for name, server in recipe.rewards.servers.items():
        mine = [asking for asking in asked if asking.server == name]
        requests = num_clips * sum(asking.requests for asking in mine)
        if not requests:
            continue
        tokens = num_clips * sum(a.tokens(recipe.model, counted.assumed) for a in mine)
        size = server_parameters(server)
        yield Work(
            what=f"judge by {name}",
            amount=f"{requests:,.0f} requests x {tokens / requests:,.0f} tokens",
            flops=None if size is None else 2 * size * tokens,
            mfu=counted.assumed.judge_mfu,
            role=name,
            stage=1,
        )
