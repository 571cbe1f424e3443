"""The RL phase: one loop that samples, scores, credits, learns and publishes.

Rollout actors sample groups (rlvid.flow.sampler), the reward pool scores them, the learner credits
and steps (rlvid.algorithms, learners.rl) and publishes weights back. The driver holds references
and small numbers, never a rollout.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rlvid.algorithms.aggregation import aggregate
from rlvid.algorithms.score_table import RewardTable, ScoreTable, score_table
from rlvid.config import Recipe
from rlvid.data.prompts import load_prompts, prompts_for_step
from rlvid.launch import driver_state
from rlvid.launch.driver_state import DriverState, load_driver_state
from rlvid.launch.groups import ScoredGroup, sample_and_score, training_task
from rlvid.launch.heldout import heldout_prompts, measure, with_judges
from rlvid.launch.phases.base import Artifacts, PhaseContext, trained_policy
from rlvid.launch.roles import SamplingRoles, open_sampling
from rlvid.launch.step_metrics import step_metrics
from rlvid.launch.watch import Watch, best_folder, correlation_table, drop_all_but_best
from rlvid.learners.checkpoint import find_latest
from rlvid.learners.group import LearnerGroup
from rlvid.models.policy import Policy
from rlvid.observability.progress import PhaseProgress, open_progress
from rlvid.observability.trace import Trace
from rlvid.records import Prompt, StepReport, WeightsManifest

logger = logging.getLogger(__name__)

CANARY_TOLERANCE = 1e-5
"""Largest difference between an actor's and the learner's canary velocity, float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """What the loop works with."""

    recipe: Recipe
    context: PhaseContext
    sampling: SamplingRoles
    learner: LearnerGroup
    state: DriverState
    prompts: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]
    progress: PhaseProgress
    trace: Trace
    watch: Watch


class Grpo:
    """Group-relative policy optimisation on prompts alone."""

    def run(self, context: PhaseContext, artifacts: Artifacts) -> Artifacts:
        recipe = context.recipe
        checkpoints = context.folder / "checkpoints"
        latest = find_latest(checkpoints) if context.resume else None
        first_step = latest.step if latest else 0
        context.recorder.resume_after(latest.step if latest else None)
        state = load_driver_state(latest.path) if latest else DriverState()
        with open_loop(context, artifacts.policy, first_step, state) as loop:
            if latest:
                loop.learner.load_checkpoint(latest.path)
            loop.sampling.ledger.forget_from(first_step)
            stopped_early = train(loop, first_step)
            exported = context.folder / "policy"
            if stopped_early:
                assert state.memory.best_step is not None, "stopped with no evaluation"
                exported = best_folder(context.folder, state.memory.best_step)
            else:
                loop.learner.export(exported)
            counts = loop.sampling.ledger.counts()
            if not counts.is_balanced or counts.in_flight:
                raise RuntimeError(f"ledger: groups are unaccounted for at the end: {counts}")
        policy, ema_policy = trained_policy(artifacts.policy, exported, recipe.learner.mode)
        return replace(artifacts, policy=policy, ema_policy=ema_policy)


def train(loop: Loop, first_step: int) -> bool:
    """Sample, score, reward, learn, publish, until the recipe's last step or an early stop.

    Returns:
        True when a held-out judge ended it; the phase's policy is then the best one kept.
    """
    recipe = loop.recipe
    publish(loop, first_step)
    check_canary(loop)
    if recipe.grpo.evaluate_every and first_step == 0:
        loop.context.recorder.write(0, evaluate(loop, 0)[0])
    for step in range(first_step, recipe.grpo.num_steps):
        started, num_lost = time.perf_counter(), loop.sampling.rollouts.num_lost
        scored = sample(loop, step)
        sampled_s = time.perf_counter() - started
        table = scores_of(loop, scored)
        rewards, weights = reward(loop, table, step)
        report = learn(loop, scored, rewards, step)
        learned_s = time.perf_counter() - started - sampled_s
        manifest = publish(loop, step + 1)
        metrics = step_metrics(
            recipe,
            scored,
            report,
            manifest,
            weights=weights,
            num_lost=loop.sampling.rollouts.num_lost - num_lost,
            seconds={
                "sample": sampled_s,
                "learn": learned_s,
                "step": time.perf_counter() - started,
            },
            pool=loop.sampling.rewards.step_metrics(),
        )
        metrics |= loop.watch.after_step(step + 1, table, scored)
        should_stop = False
        if _is_due(step, recipe.grpo.evaluate_every, recipe.grpo.num_steps):
            measured, should_stop = evaluate(loop, step + 1)
            metrics |= measured
            loop.context.recorder.write_text("correlation", step + 1, correlation_table(metrics))
        loop.context.recorder.write(step + 1, metrics)
        loop.progress.step_done(step, metrics)
        if should_stop:  # before the checkpoint: a resume from it would go on past the stop
            return True
        if _is_due(step, recipe.grpo.checkpoint.every, recipe.grpo.num_steps):
            checkpoint(loop, step + 1)
    return False


def sample(loop: Loop, step: int) -> list[ScoredGroup]:
    """Return the step's groups, sampled by the actors and scored by the pool.

    Held-out judges are in the pool too and are not asked: what they never saw of training they
    cannot be gamed by.
    """
    recipe = loop.recipe
    chosen = prompts_for_step(loop.prompts, recipe.seed, step, recipe.rollout.groups_per_step)
    tasks = [
        training_task(recipe, prompt, visit=visit, step=step, position=position)
        for position, (prompt, visit) in enumerate(chosen)
    ]

    def note(group: ScoredGroup) -> None:
        now, summary, scores = time.time(), group.summary, group.scores
        score_s = scores.decode_s + scores.score_s
        loop.trace.add("rewards", "score", now - score_s, score_s, {"group": summary.group_id})
        began = now - score_s - summary.sample_s
        loop.trace.add(summary.actor_id, "sample", began, summary.sample_s)

    return sample_and_score(
        tasks,
        loop.sampling.rollouts,
        loop.sampling.rewards,
        loop.sampling.ledger,
        step=step,
        lease_s=recipe.rollout.deadline_s,
        scorers=[scorer.label for scorer in recipe.rewards.scorers],
        on_group=note,
    )


def scores_of(loop: Loop, scored: list[ScoredGroup]) -> ScoreTable:
    """Return the step's scores as the one table that everything after works with.

    Raises:
        MissingScoresError: a scorer misses more than `rewards.max_missing_frac`.
    """
    config = loop.recipe.rewards
    return score_table(
        [score for group in scored for score in group.scores.scores],
        scorers=[scorer.label for scorer in config.scorers],
        group_ids=[group.task.group_id for group in scored],
        group_size=loop.recipe.rollout.group_size,
        max_missing_frac=config.max_missing_frac,
    )


def reward(loop: Loop, table: ScoreTable, step: int) -> tuple[RewardTable, dict[str, float]]:
    """Combine the scorers as `rewards.aggregation` says; return the rewards and weights in force.

    Running statistics move on, and go into the next checkpoint.
    """
    config = loop.recipe.rewards
    rewards, loop.state.running, weights = aggregate(
        table,
        {scorer.label: scorer.weight for scorer in config.scorers},
        config.aggregation,
        step=step,
        state=loop.state.running,
        min_std=loop.recipe.algorithm.advantage.min_std,
    )
    return rewards, weights


def learn(loop: Loop, scored: list[ScoredGroup], rewards: RewardTable, step: int) -> StepReport:
    """Credit the groups and take the step's updates; the ledger knows each group's end."""
    ledger = loop.sampling.ledger
    group_ids = rewards.group_ids
    ledger.claim(group_ids)
    with loop.trace.span("learner", "learn"):
        report = loop.learner.train([group.group for group in scored], rewards, step=step)
    for group_id in report.dropped_group_ids:
        ledger.drop(group_id, "no spread in its rewards")
    ledger.consume([group_id for group_id in group_ids if group_id in report.trained_group_ids])
    return report


def publish(loop: Loop, version: int) -> WeightsManifest:
    """Make every actor sample with the learner's weights; receipts carry the digest."""
    with loop.trace.span("weights", "publish"):
        manifest, buckets = loop.learner.publish(version)
        loop.sampling.rollouts.publish(manifest, buckets, loop.recipe.learner.deadline_s)
    return manifest


def check_canary(loop: Loop) -> None:
    """Compare each actor's velocity on a fixed input with the learner's.

    Digests prove that the bytes arrived; only this proves that they are what samples.

    Raises:
        RuntimeError: an actor's velocity differs by more than `CANARY_TOLERANCE`.
    """
    text = loop.prompts[0].model_text
    expected = loop.learner.canary(text)
    latents, sigma, velocity = expected
    pool = loop.sampling.rollouts
    answers = pool.canaries(latents, sigma, text, loop.recipe.learner.deadline_s)
    for actor_id, answer in zip(pool.actor_ids, answers, strict=True):
        difference = float((answer - velocity).abs().max())
        tolerance = CANARY_TOLERANCE if loop.recipe.model.dtype == "float32" else 0.05
        if not difference <= tolerance:
            raise RuntimeError(
                f"{actor_id}: canary velocity differs from the learner's by {difference:.3g}, "
                f"expected at most {tolerance:g}; the actor does not sample with the published "
                "policy (dtype, adapter or attention backend differ)"
            )


def evaluate(loop: Loop, step: int) -> tuple[dict[str, float], bool]:
    """Measure the policy after `step` steps on held-out prompts with the pinned sampler.

    The judges score too; the policy they like most is kept where an early stop may want it. Its
    groups count to the step before, so that a resume from a checkpoint of `step` keeps them.

    Returns:
        The metrics, and whether to stop.
    """
    with loop.trace.span("evaluate", "heldout"):
        measured = measure(
            loop.recipe,
            loop.sampling,
            loop.heldout,
            label=f"heldout-{step:06d}",
            num_seeds=1,
            step=max(step - 1, 0),
        )
    found = loop.watch.after_heldout(step, measured)
    if found.is_best and loop.recipe.grpo.early_stop.judge_falls:
        loop.learner.export(best_folder(loop.context.folder, step))
    metrics = {**measured.metrics(), **found.metrics}
    reward = metrics.get("heldout/reward/mean")
    shown = "missing, no prompt was scored" if reward is None else f"{reward:.4f}"
    loop.progress.say(f"step {step} held-out reward {shown}")
    return metrics, found.should_stop


def checkpoint(loop: Loop, step: int) -> None:
    """Write what a resume needs: learner and driver; prompts and seeds follow from the step."""
    config = loop.recipe.grpo.checkpoint
    with loop.trace.span("learner", "checkpoint"):
        loop.learner.save_checkpoint(
            loop.context.folder / "checkpoints",
            step=step,
            keep=config.keep,
            driver_files={driver_state.FILE: json.dumps(loop.state.to_json())},
        )
    drop_all_but_best(loop.context.folder, loop.state.memory.best_step)


@contextmanager
def open_loop(
    context: PhaseContext, policy: Policy, first_step: int, state: DriverState
) -> Iterator[Loop]:
    """Start learner, actors and reward pool side by side, and the progress display."""
    recipe = context.recipe
    prompts = load_prompts(recipe.prompts)
    config = recipe.grpo
    heldout = heldout_prompts(recipe, config.evaluate_prompts) if config.evaluate_every else ()
    # Judges are loaded only where something is held out for them.
    sampling_recipe = with_judges(recipe) if config.evaluate_every else recipe
    learner = LearnerGroup.start_rl(recipe, policy)
    ledger_path = context.folder / "ledger.sqlite"
    try:
        with (
            open_sampling(sampling_recipe, policy, recipe.learner, ledger_path) as sampling,
            open_progress("grpo", config.num_steps, first_step=first_step) as progress,
        ):
            learner.wait_ready(recipe.cluster.start_deadline_s)
            yield Loop(
                recipe=recipe,
                context=context,
                sampling=sampling,
                learner=learner,
                state=state,
                prompts=prompts,
                heldout=heldout,
                progress=progress,
                trace=Trace(context.folder / "trace.json"),
                watch=Watch(recipe, state.memory, context.recorder, progress),
            )
    finally:
        learner.shutdown()


def _is_due(step: int, every: int, num_steps: int) -> bool:
    """True after every `every`-th step and after the last."""
    return bool(every) and ((step + 1) % every == 0 or step + 1 == num_steps)
