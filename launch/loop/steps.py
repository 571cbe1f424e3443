"""The steps of the RL phase: which groups they hold, what is credited, where the learner rests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rlvid.actors.pool import RolloutLostError
from rlvid.algorithms.aggregation import aggregate
from rlvid.algorithms.score_table import RewardTable, ScoreTable, score_table
from rlvid.config import Recipe
from rlvid.data.prompts import prompts_for_step
from rlvid.launch.driver_state import DriverState
from rlvid.launch.groups import ScoredGroup, training_task
from rlvid.launch.loop.line import Issue
from rlvid.launch.loop.schedule import Chunk, oldest_version
from rlvid.launch.loop.trainer import Batch
from rlvid.records import Prompt, StepPlan


def is_due(step: int, every: int, num_steps: int) -> bool:
    """True after every `every`-th step and after the last; never where `every` is 0."""
    return bool(every) and ((step + 1) % every == 0 or step + 1 == num_steps)


@dataclass(slots=True)
class GrpoSteps:
    """A function of the recipe, and of the running statistics in `state`."""

    recipe: Recipe
    prompts: tuple[Prompt, ...]
    state: DriverState
    restore_group: Callable[[Issue], ScoredGroup | None] = lambda issue: None
    """Reads a group back from the disk after a restart."""
    versions: Mapping[str, int] = field(default_factory=dict)
    """Group id to the version that must sample it, where a run is done again."""
    weights: dict[int, Mapping[str, float]] = field(default_factory=dict)
    """Step to the scorers' weights in force in it."""
    tables: dict[int, ScoreTable] = field(default_factory=dict)
    """Step to its whole table, from the last chunk on."""
    _issues: dict[int, list[Issue]] = field(default_factory=dict)

    def issues(self, step: int) -> Sequence[Issue]:
        """Return the groups of a step; held-out judges are not asked.

        What judges never saw of training they cannot be gamed by.
        """
        if step not in self._issues:
            self._issues[step] = self._make_issues(step)
        return self._issues[step]

    def plans(self, step: int) -> list[StepPlan]:
        """Return the plans of a step's groups, which its loss weights are normalised over."""
        return [issue.task.plan for issue in self.issues(step)]

    def _make_issues(self, step: int) -> list[Issue]:
        recipe = self.recipe
        chosen = prompts_for_step(self.prompts, recipe.seed, step, recipe.rollout.groups_per_step)
        oldest = oldest_version(step, recipe.rollout.max_staleness)
        issues = []
        for position, (prompt, visit) in enumerate(chosen):
            task = training_task(recipe, prompt, visit=visit, step=step, position=position)
            known = self.versions.get(task.group_id)
            issues.append(
                Issue(
                    task=task,
                    step=step,
                    min_version=oldest if known is None else known,
                    max_version=step if known is None else known,
                    scorers=self._scorers,
                )
            )
        return issues

    def restore(self, issue: Issue) -> ScoredGroup | None:
        return self.restore_group(issue)

    def reward(self, chunk: Chunk, groups: Sequence[ScoredGroup]) -> RewardTable:
        """Combine the scorers as `rewards.aggregation` says.

        Running statistics move on, and go into the next checkpoint; with them a step is one chunk.
        """
        config = self.recipe.rewards
        rewards, self.state.running, self.weights[chunk.step] = aggregate(
            self._table(groups, max_missing_frac=1.0),
            {scorer.label: scorer.weight for scorer in config.scorers},
            config.aggregation,
            step=chunk.step,
            state=self.state.running,
            min_std=self.recipe.algorithm.advantage.min_std,
        )
        return rewards

    def before_update(self, batch: Batch) -> None:
        """Check the share of missing scores over the whole step.

        Raises:
            MissingScoresError: a scorer misses more than `rewards.max_missing_frac`.
        """
        limit = self.recipe.rewards.max_missing_frac
        self.tables[batch.step] = self._table(batch.groups, max_missing_frac=limit)

    def check_prompts(self, quarantined: Mapping[str, str]) -> None:
        """See to it that there is a prompt left; `quarantined` has the ids, with reasons.

        Raises:
            RolloutLostError: there is none, and steps without groups would go on to the end.
        """
        reasons = [quarantined.get(prompt.prompt_id) for prompt in self.prompts]
        if None not in reasons:
            raise RolloutLostError(
                f"rollout: all {len(reasons)} prompts are quarantined, so nothing is left to train "
                f"on; it is hardly the prompts that actors die of. The last one: {reasons[-1]}"
            )

    def is_barrier(self, step: int) -> bool:
        """The learner rests for an evaluation and while a checkpoint is written."""
        grpo = self.recipe.grpo
        return is_due(step, grpo.evaluate_every, grpo.num_steps) or is_due(
            step, grpo.checkpoint.every, grpo.num_steps
        )

    def forget(self, step: int) -> None:
        """Drop what was kept of a finished step."""
        self.weights.pop(step, None)
        self.tables.pop(step, None)
        self._issues.pop(step, None)

    @property
    def _scorers(self) -> tuple[str, ...]:
        return tuple(scorer.label for scorer in self.recipe.rewards.scorers)

    def _table(self, groups: Sequence[ScoredGroup], *, max_missing_frac: float) -> ScoreTable:
        return score_table(
            [score for group in groups for score in group.scores.scores],
            scorers=self._scorers,
            group_ids=[group.task.group_id for group in groups],
            group_size=self.recipe.rollout.group_size,
            max_missing_frac=max_missing_frac,
        )
