"""The groups of a virtual run, and where its learner rests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlvid.algorithms.score_table import RewardTable
from rlvid.launch.groups import ScoredGroup
from rlvid.launch.loop.line import Issue
from rlvid.launch.loop.schedule import Chunk, oldest_version, training_group_id
from rlvid.launch.loop.steps import is_due
from rlvid.launch.loop.trainer import Batch
from rlvid.launch.simulate.plan import SimulationPlan
from rlvid.records import GroupTask, NoiseSettings, Prompt, StepPlan

PLAN = StepPlan(
    sigmas=(1.0, 0.0),
    stochastic_steps=(),
    trained_steps=(),
    noise=NoiseSettings(schedule="flash", eta=0.0, truncation=0.45, first_sigma=0.0),
    num_noises=1,
)


@dataclass(slots=True)
class VirtualSteps:
    """The loop's `Steps` in virtual time."""

    plan: SimulationPlan
    restore_group: Callable[[Issue], ScoredGroup | None] = lambda issue: None

    def issues(self, step: int) -> Sequence[Issue]:
        plan = self.plan
        first = step * plan.groups_per_step
        oldest = oldest_version(step, plan.max_staleness)
        return [
            Issue(
                task=task_of(
                    training_group_id(step, position), (first + position) % plan.num_prompts
                ),
                step=step,
                min_version=oldest,
                max_version=step,
            )
            for position in range(plan.groups_per_step)
        ]

    def evaluation(self, step: int) -> Sequence[Issue]:
        """Return the held-out groups after `step` steps; their prompts are others."""
        return [
            Issue(
                task=task_of(f"heldout-{step:06d}-{position:03d}", -1 - position),
                step=max(step - 1, 0),
                min_version=step,
                trains=False,
            )
            for position in range(self.plan.evaluate_groups)
        ]

    def restore(self, issue: Issue) -> ScoredGroup | None:
        return self.restore_group(issue)

    def reward(self, chunk: Chunk, groups: Sequence[ScoredGroup]) -> RewardTable:
        ids = tuple(group.task.group_id for group in groups)
        return RewardTable(group_ids=ids, values={}, weights={})

    def before_update(self, batch: Batch) -> None:
        """Nothing is missing of virtual scores."""

    def is_barrier(self, step: int) -> bool:
        return self.is_evaluated(step) or self.is_checkpoint(step)

    def is_evaluated(self, step: int) -> bool:
        return is_due(step, self.plan.evaluate_every, self.plan.num_steps)

    def is_checkpoint(self, step: int) -> bool:
        return is_due(step, self.plan.checkpoint_every, self.plan.num_steps)


def task_of(group_id: str, prompt: int) -> GroupTask:
    """Return a group of the numbered prompt."""
    return GroupTask(
        group_id=group_id,
        lease_id="",
        prompt=Prompt(prompt_id=f"prompt-{prompt}", text=f"prompt {prompt}"),
        plan=PLAN,
        noise_seeds=(),
        step_seeds=(),
        guidance_scale=1.0,
    )
