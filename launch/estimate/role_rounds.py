"""Every role's work on a group, done by the roles' own workers in one process, and timed.

What a run's processes do is done here without Ray: an actor's worker samples real tasks of the
recipe, the pool's decode and score them, the learner adds their gradient, takes its step on random
rewards and publishes. Several processes do the same at the same time, see `cpu_rates.py`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from rlvid.config import Recipe
from rlvid.config.rewards import ScorerConfig

if TYPE_CHECKING:
    from rlvid.actors.worker import Worker
    from rlvid.learners.rl import RlLearner
    from rlvid.records import RolloutGroup, StepPlan
    from rlvid.rewards.decoding import Frames
    from rlvid.rewards.scoring import ScorerWorker

ROUNDS = 4
"""The first of them only warms up."""
GROUPS = 2
"""Of a round: the learner begins its step with one and ends it with the other."""

Result = TypeVar("Result")


@dataclass(slots=True, kw_only=True)
class RoundSeconds:
    """What was timed, call by call."""

    sample: list[float] = field(default_factory=list)
    """For each latent that was handed to the transformer, of a whole group."""
    decode: list[float] = field(default_factory=list)
    score: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By label; of scorers that ask nobody."""
    learn: list[float] = field(default_factory=list)
    """Forwards and backwards of a group."""
    update: list[float] = field(default_factory=list)
    """Those of a group, all later updates, the publish, and an actor that takes it."""


def run_rounds(recipe: Recipe, meet: Callable[[], object]) -> RoundSeconds:
    """Open the workers of all roles and have them do ROUNDS rounds, each a step of two groups.

    Args:
        meet: returns once all processes that measure have come to the same place.

    Raises:
        ValueError: a model cannot be loaded, or a scorer not be opened, or it failed.
    """
    rounds = _Rounds(recipe, meet)
    rounds.run_one()
    rounds.found = RoundSeconds()
    for _ in range(ROUNDS - 1):
        rounds.run_one()
    return rounds.found


def is_timed(config: ScorerConfig) -> bool:
    """Return whether a scorer works in the pool's own processes: it asks no server."""
    return not (config.server or config.python or config.runtime_env)


class _Rounds:
    """The opened workers of one process."""

    def __init__(self, recipe: Recipe, meet: Callable[[], object]) -> None:
        import cv2

        from rlvid.data.prompts import load_prompts
        from rlvid.rewards.decoding import open_decode_worker
        from rlvid.rewards.scoring import open_scorer_worker

        cv2.setNumThreads(recipe.cluster.threads_per_role)  # as the pool's processes do
        self._recipe, self._meet = recipe, meet
        self._prompts = load_prompts(recipe.prompts)
        self._actor, self._learner = _open_actor(recipe), _open_learner(recipe)
        self._decoder = open_decode_worker(recipe.model)
        self._scorers = {
            position: open_scorer_worker(config, position)
            for position, config in enumerate(recipe.rewards.scorers)
            if is_timed(config)
        }
        self._step = 0
        self.found = RoundSeconds()
        self._publish()

    def run_one(self) -> None:
        """Do a step of GROUPS groups."""
        groups = [self._sample(position) for position in range(GROUPS)]
        for group in groups:
            frames, _ = self._timed(self.found.decode, partial(self._decoder.decode, group))
            for position, scorer in self._scorers.items():
                self._score(position, scorer, group, frames)
        plans = [group.plan for group in groups]
        *firsts, last = range(GROUPS)
        for row in firsts:
            self._timed(self.found.learn, partial(self._learn, groups[row], plans, row))
        self._timed(self.found.update, partial(self._end_step, groups[last], plans, last))

    def _sample(self, position: int) -> RolloutGroup:
        from rlvid.launch.groups import training_task

        prompt = self._prompts[(GROUPS * self._step + position) % len(self._prompts)]
        task = training_task(self._recipe, prompt, visit=0, step=self._step, position=position)
        found = list[float]()
        group = self._timed(found, partial(self._actor.sample, task))
        self.found.sample.append(found[0] / group.num_forwards)
        return group

    def _score(
        self, position: int, scorer: ScorerWorker, group: RolloutGroup, frames: Frames
    ) -> None:
        from rlvid.rewards.scoring import ScoreItem

        items = [
            ScoreItem(item_id=(self._step, row), prompt=group.prompt, source=0, row=row)
            for row in range(len(frames))
        ]
        label, fps = self._recipe.rewards.scorers[position].label, self._recipe.model.fps
        results = self._timed(
            self.found.score[label], partial(scorer.score, items, [frames], fps=fps)
        )
        failed = next((result for result in results if result.is_failure), None)
        if failed is not None:
            raise ValueError(f"rewards.scorers.{position}: {label!r}: {failed.error}")

    def _learn(self, group: RolloutGroup, plans: Sequence[StepPlan], row: int) -> None:
        """Add a group's gradient, and take the step behind the last; rewards are random."""
        import torch

        from rlvid.algorithms.score_table import RewardTable

        values = {"random": torch.randn(1, len(group.rollouts))}
        self._learner.train_chunk(
            {group.group_id: group},
            RewardTable(group_ids=(group.group_id,), values=values, weights={"random": 1.0}),
            step=self._step,
            num_groups=GROUPS,
            first_row=row,
            is_last=row == GROUPS - 1,
            plans=plans,
        )

    def _end_step(self, group: RolloutGroup, plans: Sequence[StepPlan], row: int) -> None:
        self._learn(group, plans, row)
        self._step += 1
        self._publish()

    def _publish(self) -> None:
        manifest, buckets = self._learner.publish(self._step)
        self._actor.stage(manifest, [buckets[index] for index in sorted(buckets)])
        self._learner.release_buckets(self._step)

    def _timed(self, seconds: list[float], call: Callable[[], Result]) -> Result:
        self._meet()
        began = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - began)
        return result


def _open_actor(recipe: Recipe) -> Worker:
    """Open the worker of a rollout actor; one that samples with others works alone here."""
    from rlvid.actors.worker import WorkerSettings, open_worker
    from rlvid.models.policy import Policy

    rollout = recipe.rollout
    settings = WorkerSettings(
        use=rollout.worker,
        policy=Policy(model_path=recipe.model.path),
        model_config=recipe.model,
        learner_config=recipe.learner,
        weights_config=recipe.weights,
        num_threads=recipe.cluster.threads_per_role,
        options=rollout.worker_options,
        inference=rollout.inference,
    )
    return open_worker(settings, "actor-0.0")


def _open_learner(recipe: Recipe) -> RlLearner:
    """Open the learner as its only rank."""
    from rlvid.learners.local_gang import join_alone
    from rlvid.learners.rl import rl_settings
    from rlvid.learners.workers import open_learner
    from rlvid.models.policy import Policy

    join_alone()
    alone = recipe.learner.model_copy(update={"num_ranks": 1, "sequence_parallel": 1})
    recipe = recipe.model_copy(update={"learner": alone})
    learner: RlLearner = open_learner(rl_settings(recipe, Policy(model_path=recipe.model.path)))
    return learner
