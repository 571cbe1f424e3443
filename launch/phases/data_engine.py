"""The data engine: weak dimensions, prompts for them, rendered and scored clips, a data set.

    broad prompts -> rendered, scored -> weak dimensions      probe/ and written.json
    weak dimensions -> prompts P_s, filtered                  written.json
    P_s -> clips P_s V_s, scored offline, once                <name>/clips/
    real clips P_r V_r, and on demand P_r V_s                 <name>/clips/, <name>/videos/
    everything about every clip                               <name>/manifest/, <name>/dataset.json
    the best and the worst clips, to be looked at             shown/

After GigaVideo-1 (arXiv:2506.10639). Every arrow ends on the disk, so a phase that was killed goes
on where it stopped: what is rendered is not rendered again, what is written not written again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import ray

from rlvid.config import Recipe
from rlvid.data.engine.manifest import read_manifest, write_manifest
from rlvid.data.engine.records import ClipRecord, Weakness
from rlvid.data.engine.store import ClipStore
from rlvid.data.prompts import load_prompts
from rlvid.evaluation.weakness import DimensionScore, dimension_scores, find_weaknesses
from rlvid.launch.data_engine.plan import PlannedClips, Rendering, rendering_of
from rlvid.launch.data_engine.prompt_parts import broad_prompts, embedder_of, open_prompt_parts
from rlvid.launch.data_engine.real import RealSet, open_real
from rlvid.launch.data_engine.render import RenderCounts, Renderer
from rlvid.launch.data_engine.shown import find_extremes, write_shown
from rlvid.launch.data_engine.written import WrittenSet, write_prompts
from rlvid.launch.groups import weighted_reward
from rlvid.launch.phases.base import Artifacts, PhaseContext
from rlvid.launch.roles import SamplingRoles, open_sampling
from rlvid.observability.progress import PhaseProgress, open_progress
from rlvid.records import Prompt
from rlvid.seeds import prompt_id

logger = logging.getLogger(__name__)

STEP_PROBE, STEP_CLIPS = 0, 1
"""Steps of the ledger and of the metrics."""


class DataEngine:
    """Hands on the folder of the data set as `artifact:<data_engine.name>`."""

    def run(self, context: PhaseContext, artifacts: Artifacts) -> Artifacts:
        recipe, engine = context.recipe, context.recipe.data_engine
        folder = context.folder / engine.name
        context.recorder.resume_after(None)
        began = time.monotonic()
        rendering = rendering_of(recipe, artifacts.policy)
        ledger = context.folder / "ledger.sqlite"
        with (
            open_progress("data_engine", 4) as progress,
            open_sampling(recipe, artifacts.policy, None, ledger) as roles,
        ):
            roles.wait_ready()
            roles.ledger.forget_from(0)  # of an attempt that was stopped
            work = _Work(context, progress, roles, rendering, folder)
            written = work.write()
            real = open_real(recipe, folder)
            context.recorder.write(STEP_CLIPS, {**written.metrics(), **real.counts.metrics()})
            counts, plan = work.render(written, real)
            records = chain(
                ClipStore(folder).records([planned.place for planned in plan]), real.records()
            )
            digest = write_manifest(
                folder,
                rewarded(records, recipe),
                rows_per_part=engine.groups_per_shard * engine.clips_per_prompt,
                made_by={
                    "policy": rendering.policy_digest,
                    "rendering": asdict(rendering),
                    "written": written.counts,
                    "real": real.counts.to_json(),
                    "render": asdict(counts),
                    "seconds": round(time.monotonic() - began, 1),
                },
            )
            work.show()
        logger.info("data set digest=%s folder=%s", digest, folder)
        return replace(artifacts, datasets={**artifacts.datasets, engine.name: str(folder)})


@dataclass(frozen=True, slots=True)
class _Work:
    """The steps that need processes."""

    context: PhaseContext
    progress: PhaseProgress
    roles: SamplingRoles
    rendering: Rendering
    folder: Path

    def write(self) -> WrittenSet:
        """Return the prompts of the weak dimensions; those of an earlier attempt if there are."""
        path = self.context.folder / "written.json"
        if path.is_file():
            return WrittenSet.load(path)
        config = self.context.recipe.data_engine
        rows, weaknesses = self._weaknesses()
        self.progress.step_done(0, {})
        with open_prompt_parts(self.context.recipe, self.roles.rewards.endpoints) as parts:
            if config.prompts.writer == "grammar":
                self.progress.say("prompts are written by the tiny world's grammar, without an LLM")
            prompts = write_prompts(
                weaknesses, config.prompts, parts.writer, parts.keep_base, parts.keep_long
            )
            counts = parts.counts()
        written = WrittenSet(
            weaknesses=weaknesses,
            prompts=prompts,
            counts=counts,
            dimension_scores=tuple(asdict(row) for row in rows),
        )
        written.save(path)
        self.progress.step_done(1, {})
        return written

    def render(self, written: WrittenSet, real: RealSet) -> tuple[RenderCounts, list[PlannedClips]]:
        """Have every written prompt rendered and scored, and the real captions that are wanted."""
        config = self.context.recipe.data_engine
        plan = [
            PlannedClips(
                place=place,
                kind="synthetic",
                prompt=replace(_prompt(row.text), questions=row.questions),
                dimension=row.dimension,
                num_clips=config.clips_per_prompt,
            )
            for place, row in enumerate(written.prompts)
        ]
        captions = real.captions(config.real.num_recaptions)
        plan += [
            PlannedClips(
                place=len(plan) + n,
                kind="recaption",
                prompt=_prompt(text),
                dimension="",
                num_clips=1,
            )
            for n, text in enumerate(captions)
        ]
        counts = self._render(self.folder, plan, STEP_CLIPS)
        self.progress.step_done(3, {})
        return counts, counts.on_disk(plan)

    def show(self) -> None:
        """Have the best and the worst clips decoded, for the report."""
        recipe, rewards = self.context.recipe, self.roles.rewards
        rows = read_manifest(self.folder, kinds=("synthetic", "recaption"))
        write_shown(
            self.context.folder,
            self.folder,
            find_extremes(rows, recipe.data_engine.num_clips_shown),
            rendering=self.rendering,
            decode=lambda group: rewards.clips(ray.put(group)),
            fps=recipe.model.fps,
            recorder=self.context.recorder,
        )

    def _weaknesses(self) -> tuple[Sequence[DimensionScore], tuple[Weakness, ...]]:
        """Return how the policy does in every dimension, and the weak ones."""
        recipe = self.context.recipe
        config = recipe.data_engine.weakness
        if config.given:
            broad = [prompt.text for prompt in load_prompts(recipe.data_engine.broad)]
            return (), tuple(
                Weakness(
                    dimension=row.scorer,
                    description=row.description,
                    seed_prompts=row.seed_prompts or tuple(broad[: config.num_prompts]),
                )
                for row in config.given
            )
        prompts = broad_prompts(recipe)
        plan = [
            PlannedClips(
                place=place,
                kind="synthetic",
                prompt=prompt,
                dimension="",
                num_clips=config.seeds_per_prompt,
            )
            for place, prompt in enumerate(prompts)
        ]
        probe = self.context.folder / "probe"
        rendered = self._render(probe, plan, STEP_PROBE).on_disk(plan)
        scores: dict[str, dict[tuple[str, int], float]] = {
            scorer.label: {} for scorer in recipe.rewards.scorers if scorer.weight
        }
        for record in ClipStore(probe).records([planned.place for planned in rendered]):
            for label, value in record.scores.items():
                if label in scores:
                    scores[label][record.prompt_id, record.row] = value
        rows = dimension_scores(scores)
        found = find_weaknesses(
            rows, scores, prompts, config, embedder=embedder_of(recipe), seed=recipe.seed
        )
        for weakness in found:
            self.progress.say(
                f"weak: {weakness.dimension} {weakness.mean:.3f} [{weakness.low:.3f}, "
                f"{weakness.high:.3f}]; {weakness.description}"
            )
        return rows, found

    def _render(self, folder: Path, plan: Sequence[PlannedClips], step: int) -> RenderCounts:
        recipe = self.context.recipe
        renderer = Renderer(
            folder=folder,
            rendering=self.rendering,
            roles=self.roles,
            groups_in_flight=recipe.data_engine.groups_in_flight,
            deadline_s=recipe.rollout.deadline_s,
        )
        shown = 0.0

        def show(counts: RenderCounts) -> None:
            nonlocal shown
            if time.monotonic() - shown > 5.0:
                shown = time.monotonic()
                self.progress.say(
                    f"{folder.name}: {counts.num_kept + counts.num_rendered} of "
                    f"{counts.num_planned} clips"
                )

        counts = renderer.render(plan, step=step, on_clips=show)
        self.context.recorder.write(step + 1, counts.metrics())
        return counts


def rewarded(records: Iterator[ClipRecord], recipe: Recipe) -> Iterator[ClipRecord]:
    """Yield the rows with their reward; a missing score leaves none, and is never 0."""
    weights = {s.label: s.weight for s in recipe.rewards.scorers if s.weight}
    for record in records:
        yield replace(record, reward=weighted_reward(record.scores, weights))


def _prompt(text: str) -> Prompt:
    return Prompt(prompt_id=prompt_id(text), text=text)
