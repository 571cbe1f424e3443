"""Measures every stage of a run on held-out prompts, for the table with a column for each.

    stages of the run -> columns -> each set of prompts, as it is shown -> clips -> scores, motion

What phase evaluate has measured already (the base, the newest policy) is not sampled again. Only
numbers are kept of a measurement, and the clips that the report shows.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlvid.config import Recipe
from rlvid.data.video_files import write_mp4
from rlvid.evaluation.drift import Pair
from rlvid.evaluation.motion import mean_motion
from rlvid.launch.enhancement.apply import ShownPrompts, rewritten_prompts
from rlvid.launch.heldout import Measurement, measure, prompt_sets
from rlvid.launch.phases.base import BASE, Artifacts, RunStage
from rlvid.launch.roles import SamplingRoles
from rlvid.models.policy import Policy
from rlvid.records import Prompt

UNDISTILLED = "undistilled"
"""Name of the column of a teacher in a student's number of steps."""
NEWEST = "newest"
"""Name of the one stage of a run that remembers none."""
CLIPS = "stages"
"""Folder of the clips, in that of the phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What is sampled for a column of the table, and what it is compared with."""

    name: str
    policy: Policy
    enhancer: str | None = None
    before: str | None = None
    """Name of the column of the stage before; None of the base."""
    teacher: str | None = None
    num_denoising_steps: int | None = None
    """None are `evaluate.num_denoising_steps`; a student has its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCell:
    """A column on one set of prompts, as numbers."""

    column: Column
    prompts: str
    """Name of the set."""
    shown: ShownPrompts
    scores: Mapping[str, Mapping[Pair, float]]
    """The reward among them."""
    motion: Mapping[Pair, float]
    seconds_per_clip: float
    """Of sampling alone, without decoding: median over the groups, each of
    `evaluate.seeds_per_prompt` clips at once."""
    clips: tuple[str, ...]
    """Paths in the folder of the phase, of the first prompts, seed index 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """Columns and sets of prompts; none where `evaluate.stages` is left out."""

    columns: tuple[Column, ...] = ()
    sets: Mapping[str, tuple[Prompt, ...]] = field(default_factory=dict)

    @property
    def num_cells(self) -> int:
        return len(self.columns) * len(self.sets)


def plan_stages(recipe: Recipe, artifacts: Artifacts) -> StagePlan:
    """Return what is to be measured of a run."""
    if recipe.evaluate.stages is None:
        return StagePlan()
    return StagePlan(columns=columns_of(recipe, artifacts), sets=prompt_sets(recipe))


def columns_of(recipe: Recipe, artifacts: Artifacts) -> tuple[Column, ...]:
    """Return the base, every stage in order, and before the first student the control for it."""
    stages = artifacts.stages or (RunStage(name=NEWEST, policy=artifacts.policy),)
    columns = [Column(name=BASE, policy=artifacts.base_policy)]
    steps = recipe.evaluate.stages.undistilled_steps if recipe.evaluate.stages else None
    before = BASE
    for stage in stages:
        known = {column.name: column for column in columns}
        if stage.teacher and steps and UNDISTILLED not in known:
            teacher = known[stage.teacher]
            columns.append(
                Column(
                    name=UNDISTILLED,
                    policy=teacher.policy,
                    enhancer=teacher.enhancer,
                    before=stage.teacher,
                    teacher=stage.teacher,
                    num_denoising_steps=steps,
                )
            )
        columns.append(
            Column(
                name=stage.name,
                policy=stage.policy,
                enhancer=stage.enhancer,
                before=before,
                teacher=stage.teacher,
            )
        )
        before = stage.name
    return tuple(columns)


def num_function_evaluations(recipe: Recipe, column: Column) -> int:
    """Return the passes of the transformer over one clip; guidance makes two of each step.

    A causal student passes over every block once more, which writes its cache.
    """
    sampling = column.policy.sampling
    if sampling is not None:
        return len(sampling.sigmas) + (sampling.layout is not None)
    steps = column.num_denoising_steps or recipe.evaluate.num_denoising_steps
    scale = recipe.evaluate.guidance_scale or recipe.rollout.guidance_scale
    return steps * (2 if scale > 1.0 else 1)


@dataclass(slots=True)
class StageSampler:
    """Samples columns on sets of prompts, each pair of policy and shown prompts once."""

    recipe: Recipe
    """With the judges in the pool."""
    roles: SamplingRoles
    folder: Path
    """Of the phase."""
    loaded: Policy | None = None
    """What the actors sample with, as far as it is known."""
    _known: dict[object, Measurement] = field(default_factory=dict)
    _rewritten: dict[tuple[str, tuple[str, ...]], ShownPrompts] = field(default_factory=dict)

    def remember(self, policy: Policy, shown: ShownPrompts, measured: Measurement) -> None:
        """Take what was measured with `policy`, which the actors now hold."""
        self.loaded = policy
        self._known[_key(policy, None, shown.prompts)] = measured
        if shown.enhancer is not None:
            self._rewritten[shown.enhancer, _ids(shown.prompts)] = shown

    def cells(self, plan: StagePlan) -> Iterator[StageCell]:
        """Yield every column on every set, column by column."""
        for column in plan.columns:
            for name, prompts in plan.sets.items():
                shown = self._shown(column, prompts)
                measured = self._measured(column, shown, f"{name}-{column.name}")
                yield self._cell(column, name, shown, measured)

    def _shown(self, column: Column, prompts: tuple[Prompt, ...]) -> ShownPrompts:
        if column.enhancer is None:
            return ShownPrompts(prompts=prompts)
        folder = Path(column.enhancer).expanduser().resolve()
        key = (str(folder), _ids(prompts))
        if key not in self._rewritten:
            self._rewritten[key] = rewritten_prompts(self.recipe, folder, prompts)
        return self._rewritten[key]

    def _measured(self, column: Column, shown: ShownPrompts, label: str) -> Measurement:
        known = self._known.get(_key(column.policy, column.num_denoising_steps, shown.prompts))
        if known is not None:
            return known
        if column.policy != self.loaded:
            self.roles.rollouts.use_policy(column.policy, self.recipe.cluster.start_deadline_s)
            self.loaded = column.policy
        return measure(
            _in_steps(self.recipe, column.num_denoising_steps),
            self.roles.run_issues,
            self.roles.ledger,
            shown.prompts,
            label=label,
            num_seeds=self.recipe.evaluate.seeds_per_prompt,
            step=0,
        )

    def _cell(
        self, column: Column, prompts: str, shown: ShownPrompts, measured: Measurement
    ) -> StageCell:
        motion: dict[Pair, float] = {}
        clips = []
        for position, group in enumerate(measured.groups):
            videos = self.roles.rewards.clips(group.group).float() / 255.0
            for index, value in enumerate(mean_motion(videos).tolist()):
                motion[group.task.prompt.prompt_id, index] = value
            if position < _num_clips(self.recipe):
                path = Path(CLIPS) / f"{prompts}_{position:02d}_{column.name}.mp4"
                (self.folder / CLIPS).mkdir(exist_ok=True)
                write_mp4(self.folder / path, videos[0], self.recipe.model.fps)
                clips.append(path.as_posix())
        return StageCell(
            column=column,
            prompts=prompts,
            shown=shown,
            scores=measured.for_monitor(),
            motion=motion,
            seconds_per_clip=statistics.median(
                group.summary.sample_s / len(group.task.noise_seeds) for group in measured.groups
            ),
            clips=tuple(clips),
        )


def _key(policy: Policy, steps: int | None, prompts: Sequence[Prompt]) -> object:
    return policy, steps, tuple((prompt.prompt_id, prompt.model_text) for prompt in prompts)


def _ids(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    return tuple(prompt.prompt_id for prompt in prompts)


def _in_steps(recipe: Recipe, steps: int | None) -> Recipe:
    if steps is None:
        return recipe
    evaluate = recipe.evaluate.model_copy(update={"num_denoising_steps": steps})
    return recipe.model_copy(update={"evaluate": evaluate})


def _num_clips(recipe: Recipe) -> int:
    return recipe.evaluate.stages.num_clips if recipe.evaluate.stages else 0
