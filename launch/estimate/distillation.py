"""The work of phase distillation: the forwards of student, teacher and fake score, stage by stage.

Letters: S levels of the student, N blocks of a clip, B clips of a step, c = (S + 1) / 2 forwards of
backward simulation to a random exit level. Of a step of distribution matching:

    fake score    B (c + 1 learned)                         each step
    student       B (c - 1 + 1 learned + g + 1)             each `fake_updates_per_student`-th

with g = 2 forwards of a guided teacher, and 1 of the fake score. The GAN term adds a learned row to
the fake score's turn and a forward and its backward to the student's.

A causal forward leaves out what a block does not see. A roll-out by blocks adds a forward for each
finished block that enters the cache, but for the last; a forward of all blocks beside their clean
past (teacher forcing) has tokens for 2 N - 1 blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rlvid.config import Recipe
from rlvid.config.distillation import CausalInitConfig, ClipsConfig, DmdConfig, StageName
from rlvid.launch.estimate.records import LEARNER, Counted, Work
from rlvid.launch.estimate.training import learned_flops
from rlvid.launch.memory import branches, evaluate_guidance
from rlvid.launch.model_size import latent_frames
from rlvid.models.causal_layout import BlockLayout
from rlvid.observability.flops import RowFlops


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """FLOPs of the forwards of a clip."""

    whole: RowFlops
    """Bidirectional."""
    causal: RowFlops
    """Of all blocks one after the other, each seeing the cache."""
    append: float
    """Finished blocks entering the cache."""
    forced: RowFlops
    """All blocks beside their clean past."""


def distillation_work(recipe: Recipe, counted: Counted) -> Iterator[Work]:
    """Yield the work of the stages, one after the other; their start and weights are left out."""
    rows = _rows(recipe, counted.row)
    for number, stage in enumerate(recipe.distillation.stages):
        for work in _stage_work(recipe, counted, rows, stage):
            yield replace(work, what=f"{stage}: {work.what}", stage=number)


def num_checkpoints(recipe: Recipe, num_steps: int) -> int:
    """Return how often a stage measures its student's motion."""
    return math.ceil(num_steps / recipe.distillation.checkpoint.every)


def encoded_clips(recipe: Recipe) -> int:
    """Return the clips that stages encode by the VAE; those of a folder are not known before."""
    return sum(_encoded(clips) for clips in recipe.distillation.clean_clips.values())


def _stage_work(recipe: Recipe, counted: Counted, rows: _Rows, stage: StageName) -> Iterator[Work]:
    config = recipe.distillation
    for place, clips in config.clean_clips.items():
        if place.partition(".")[0] == stage and _encoded(clips):
            yield _encoding(counted, _encoded(clips))
    if stage == "causal_teacher":
        teacher = config.causal_teacher
        num_rows = teacher.num_steps * teacher.batch_size
        amount = f"{teacher.num_steps:,} steps x {teacher.batch_size} clips"
        yield _training(counted, amount, num_rows * learned_flops(rows.forced, config.learner))
    elif stage == "causal_init":
        yield from _causal_init_work(recipe, counted, rows, config.causal_init)
    else:
        dmd = config.few_step if stage == "few_step" else config.self_forcing
        yield from _dmd_work(recipe, counted, rows, dmd, is_causal=stage == "self_forcing")


def _causal_init_work(
    recipe: Recipe, counted: Counted, rows: _Rows, init: CausalInitConfig
) -> Iterator[Work]:
    """Yield what the teacher answers and what the student learns."""
    num_rows, num_levels = init.num_steps * init.batch_size, len(recipe.distillation.student_steps)
    clips = f"{num_rows:,} clips"
    guided = branches(init.guidance_scale)
    asked: float
    if init.teacher == "bidirectional_student":
        asked, amount = num_levels * rows.whole.forward, f"{clips} x {num_levels} steps"
    elif init.method == "ode":
        asked = guided * (init.num_denoising_steps * rows.causal.forward + rows.append)
        amount = f"{clips} x {init.num_denoising_steps} steps" + " x 2 (guidance)" * (guided == 2)
    else:
        asked, amount = 0.0, clips
    if init.method == "consistency":
        step = rows.forced if init.teacher == "causal" else rows.whole
        times = guided if init.teacher == "causal" else 1
        asked += times * step.forward + rows.forced.forward
        amount += ", a step of the teacher and the target"
    yield _answering(counted, "teacher", amount, num_rows * asked)
    learned = num_rows * learned_flops(rows.forced, recipe.distillation.learner)
    yield _training(counted, f"{init.num_steps:,} steps x {init.batch_size} clips", learned)


def _dmd_work(
    recipe: Recipe, counted: Counted, rows: _Rows, dmd: DmdConfig, *, is_causal: bool
) -> Iterator[Work]:
    """Yield simulation, scores and the two trainings, and the monitor of motion."""
    config = recipe.distillation
    own, append = (rows.causal, rows.append) if is_causal else (rows.whole, 0.0)
    levels = len(config.student_steps)
    updates = math.ceil(dmd.num_steps / dmd.fake_updates_per_student)
    of_fake, of_student = dmd.num_steps * dmd.batch_size, updates * dmd.batch_size
    simulated = of_fake * (levels + 1) / 2 + of_student * (levels - 1) / 2
    yield _answering(
        counted,
        "simulate the student",
        f"{of_fake + of_student:,} clips x {(levels + 1) / 2:g} steps",
        simulated * own.forward + (of_fake + of_student) * append,
    )
    guided = branches(dmd.real_guidance_scale)
    yield _answering(
        counted,
        "real and fake score",
        f"{of_student:,} clips x {guided + 1} forwards",
        of_student * (guided + 1) * rows.whole.forward,
    )
    yield _training(
        counted,
        f"student: {updates:,} steps x {dmd.batch_size} clips",
        of_student * learned_flops(own, config.learner),
    )
    with_gan = bool(dmd.gan.weight)
    learned = (1 + with_gan) * of_fake * learned_flops(rows.whole, config.learner)
    if with_gan:  # forward, and a backward to the clips alone
        learned += 2 * of_student * rows.whole.forward
    yield _training(
        counted,
        f"fake score: {dmd.num_steps:,} steps x {dmd.batch_size} clips" + " x 2 (GAN)" * with_gan,
        learned,
    )
    yield from _monitor_work(recipe, counted, rows, levels * own.forward + append, dmd.num_steps)


def _monitor_work(
    recipe: Recipe, counted: Counted, rows: _Rows, student_clip: float, num_steps: int
) -> Iterator[Work]:
    """Yield the clips of the motion monitor; the teacher's are made once."""
    config = recipe.distillation
    prompts, times = config.monitor.num_prompts, num_checkpoints(recipe, num_steps)
    steps = config.teacher_denoising_steps * branches(evaluate_guidance(recipe))
    decode = counted.clip.decode
    yield _answering(
        counted,
        "watch motion",
        f"{prompts * (times + 1):,} clips",
        prompts * (times * student_clip + steps * rows.whole.forward),
    )
    yield Work(
        what="decode for motion",
        amount=f"{prompts * (times + 1):,} clips",
        flops=None if decode is None else prompts * (times + 1) * decode,
        mfu=counted.assumed.vae_mfu,
        role=LEARNER,
    )


def _rows(recipe: Recipe, row: RowFlops) -> _Rows:
    """Return the forwards of a clip; without a causal stage they are not asked for."""
    if set(recipe.distillation.stages) == {"few_step"}:
        return _Rows(whole=row, causal=row, append=0.0, forced=row)
    layout = BlockLayout(**recipe.distillation.causal.model_dump())
    num_blocks = layout.num_blocks(latent_frames(recipe.model)[0])
    seen = [len(layout.visible(block)) for block in range(num_blocks)]
    causal = _scaled(row, tokens=1.0, pairs=sum(seen) / num_blocks**2)
    last = seen[-1] / num_blocks**2
    append = _scaled(row, tokens=1 - 1 / num_blocks, pairs=sum(seen) / num_blocks**2 - last)
    forced = _scaled(
        row,
        tokens=2 - 1 / num_blocks,
        pairs=(2 * sum(seen) - seen[-1]) / num_blocks**2,
    )
    return _Rows(whole=row, causal=causal, append=append.forward, forced=forced)


def _scaled(row: RowFlops, *, tokens: float, pairs: float) -> RowFlops:
    """Return the FLOPs of so many times the tokens, and of so many times the pairs of attention.

    The few pairs with text tokens are counted as if they went along.
    """
    return RowFlops(
        linear=round(tokens * row.linear),
        text=row.text,
        attention=round(pairs * row.attention),
        entry=round(tokens * row.entry),
        head=round(tokens * row.head),
    )


def _encoded(clips: ClipsConfig) -> int:
    return clips.num_clips if clips.clips == "tiny_world" else 0


def _encoding(counted: Counted, num_clips: int) -> Work:
    encode = counted.clip.encode
    return Work(
        what="encode clips",
        amount=f"{num_clips:,} clips",
        flops=None if encode is None else num_clips * encode,
        mfu=counted.assumed.vae_mfu,
        role=LEARNER,
    )


def _answering(counted: Counted, what: str, amount: str, flops: float) -> Work:
    """Return work without gradient."""
    mfu = counted.assumed.sampling_mfu
    return Work(what=what, amount=amount, flops=flops, mfu=mfu, role=LEARNER)


def _training(counted: Counted, amount: str, flops: float) -> Work:
    mfu = counted.assumed.training_mfu
    return Work(what="train", amount=amount, flops=flops, mfu=mfu, role=LEARNER)
