"""Prompt enhancement: a language model learns to rewrite users' prompts, the video model is frozen.

    pairs -> cold start                                      cold_start/
    prompts -> groups of rewrites -> clips -> scores -> credit -> update, and again     checkpoints/
    held-out prompts, as written and rewritten               heldout-<step>.json
    the rewriter, whole                                      enhancer/

After stage 3 of arXiv:2604.25427 and RePrompt (arXiv:2505.17540). The rollout actors render with
the newest policy and the reward pool is that of `grpo`. A phase that is resumed goes on after its
last checkpoint with the same prompts, rewrites and weights, bit for bit on a CPU (with the sampler
of transformers; a vLLM server's rounding depends on what else it draws).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rlvid.config import Recipe
from rlvid.data.prompts import load_prompts
from rlvid.enhancement.folder import SETTINGS
from rlvid.enhancement.lexicon import load_lexicon
from rlvid.launch.enhancement.checks import prompts_of, trained_on_own_prompts
from rlvid.launch.enhancement.heldout import HeldoutMeasurement
from rlvid.launch.enhancement.rendering import rendering_of
from rlvid.launch.enhancement.rewriting import open_rewriting, with_rewriter_server
from rlvid.launch.enhancement.steps import EnhancementSteps
from rlvid.launch.heldout import heldout_prompts, with_judges
from rlvid.launch.loop.steps import is_due
from rlvid.launch.phases.base import Artifacts, PhaseContext
from rlvid.launch.phases.sft import Training, train
from rlvid.launch.roles import open_sampling
from rlvid.learners.checkpoint import Checkpoint, find_latest
from rlvid.learners.enhancer_group import EnhancerGroup
from rlvid.learners.enhancer_settings import cold_start_settings, reward_settings
from rlvid.models.policy import Policy
from rlvid.observability.progress import PhaseProgress, open_progress
from rlvid.observability.recorder import Recorder

COLD_START = "cold_start"


class PromptEnhancement:
    """Hands on the folder of the rewriter as `artifacts.enhancer`; the policy stays as it is."""

    def run(self, context: PhaseContext, artifacts: Artifacts) -> Artifacts:
        start = cold_start(context)
        latest = find_latest(context.folder / "checkpoints") if context.resume else None
        first_step = latest.step if latest else 0
        context.recorder.resume_after(latest.step if latest else None)
        enhancer = context.folder / "enhancer"
        with open_loop(context, artifacts.policy, start, latest) as loop:
            if first_step == 0:
                loop.evaluate(0, {})
            for step in range(first_step, context.recipe.prompt_enhancement.num_steps):
                loop.take(step)
            loop.steps.learner.export(enhancer)
        return replace(artifacts, enhancer=str(enhancer))


def cold_start(context: PhaseContext) -> str:
    """Return the language model that learns from rewards: taught by pairs, or as it is."""
    config = context.recipe.prompt_enhancement
    if config.cold_start.num_steps == 0:
        return config.rewriter.model
    folder = context.folder / COLD_START
    taught = folder / "enhancer"
    if context.resume and (taught / SETTINGS).is_file():  # written whole or not at all
        return str(taught)
    folder.mkdir(exist_ok=True)
    name = f"{context.recorder.phase}/{COLD_START}"
    with Recorder(context.recorder.path.parent, name) as recorder:
        training = Training(
            label="prompt_enhancement, cold start",
            folder=folder,
            num_steps=config.cold_start.num_steps,
            recorder=recorder,
            learner=config.learner,
            checkpoint=config.cold_start.checkpoint,
            export=taught.name,
        )
        train(context, training, lambda: EnhancerGroup(cold_start_settings(context.recipe)))
    return str(taught)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnhancementLoop:
    """What happens around a step: measurements, rows, checkpoints."""

    recipe: Recipe
    folder: Path
    recorder: Recorder
    steps: EnhancementSteps
    heldout: HeldoutMeasurement | None
    progress: PhaseProgress

    def take(self, step: int) -> None:
        """Take step `step` (from 0), write its row and what else is due after it."""
        config = self.recipe.prompt_enhancement
        metrics = self.steps.take(step)
        if is_due(step, config.evaluate_every, config.num_steps):
            self.evaluate(step + 1, metrics)
        else:
            self.recorder.write(step + 1, metrics)
        self.progress.step_done(step, metrics)
        if is_due(step, config.checkpoint.every, config.num_steps):
            keep = config.checkpoint.keep
            checkpoints = self.folder / "checkpoints"
            self.steps.learner.save_checkpoint(checkpoints, step=step + 1, keep=keep)

    def evaluate(self, done: int, metrics: dict[str, float]) -> None:
        """Measure the rewriter after `done` steps and write the row of the last of them."""
        if self.heldout is None:
            return
        measured, examples = self.heldout.measure(self.steps.rewriting.rewrite, step=done)
        metrics |= measured
        self.recorder.write(done, metrics)
        self.recorder.write_text("enhance/examples", done, examples)


@contextmanager
def open_loop(
    context: PhaseContext, policy: Policy, start: str, latest: Checkpoint | None
) -> Iterator[EnhancementLoop]:
    """Start learner, actors and reward pool side by side, and the display.

    A server for the rewriter is one of the pool's.
    """
    recipe = trained_on_own_prompts(context.recipe)
    config = recipe.prompt_enhancement
    first_step = latest.step if latest else 0
    sampling_recipe = with_judges(recipe) if config.evaluate_every else recipe
    sampling_recipe = with_rewriter_server(sampling_recipe, start)
    ledger = context.folder / "ledger.sqlite"
    with open_sampling(sampling_recipe, policy, None, ledger) as roles:
        learner = EnhancerGroup(reward_settings(recipe, start), bell=roles.bell)
        try:
            roles.wait_ready()
            learner.wait_ready(recipe.cluster.start_deadline_s + config.learner.deadline_s)
            if latest is not None:
                learner.load_checkpoint(latest.path)
            roles.ledger.forget_from(first_step)  # of an attempt that was stopped
            intent = config.reward.intent
            lexicon = load_lexicon(intent.lexicon, intent.synonyms)
            heldout = HeldoutMeasurement(
                recipe=sampling_recipe,
                roles=roles,
                prompts=heldout_prompts(recipe, config.evaluate_prompts),
                lexicon=lexicon,
                folder=context.folder,
            )
            with (
                open_rewriting(
                    recipe, start, learner, roles.rewards.endpoints, context.folder / "adapters"
                ) as rewriting,
                open_progress(
                    "prompt_enhancement", config.num_steps, first_step=first_step
                ) as progress,
            ):
                steps = EnhancementSteps(
                    recipe=recipe,
                    prompts=load_prompts(prompts_of(recipe)),
                    roles=roles,
                    learner=learner,
                    rewriting=rewriting,
                    rendering=rendering_of(recipe),
                    lexicon=lexicon,
                )
                yield EnhancementLoop(
                    recipe=recipe,
                    folder=context.folder,
                    recorder=context.recorder,
                    steps=steps,
                    heldout=heldout if config.evaluate_every else None,
                    progress=progress,
                )
        finally:
            learner.shutdown()
