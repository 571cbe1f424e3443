"""What the data engine renders: each place of the plan is a prompt and the noise of its clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlvid.config import Recipe
from rlvid.data.engine.records import ClipKind, ClipRecord, content_id
from rlvid.flow.step_plans import ode_plan
from rlvid.launch.groups import recipe_sigmas
from rlvid.models import digest_folder, model_folder
from rlvid.models.policy import Policy
from rlvid.records import GroupTask, Prompt
from rlvid.seeds import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedClips:
    """The clips of one prompt."""

    place: int
    """In the data set, from 0; names the file."""
    kind: ClipKind
    prompt: Prompt
    dimension: str
    num_clips: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """Everything besides the prompt that decides what a clip looks like."""

    policy_digest: str
    sigmas: tuple[float, ...]
    guidance_scale: float
    shape: tuple[int, int, int]
    """(num_frames, height, width)."""
    seed: int

    def noise_seeds(self, planned: PlannedClips) -> tuple[int, ...]:
        """Return the seed of each clip's initial noise: of the prompt, not of its place."""
        return tuple(
            derive_seed(self.seed, planned.prompt.prompt_id, "data_engine", index)
            for index in range(planned.num_clips)
        )

    def clip_id(self, prompt: Prompt, noise_seed: int) -> str:
        """Return the content address of a clip: the same for whoever renders it, and whenever."""
        sampler = (*self.sigmas, self.guidance_scale, *self.shape)
        return content_id(self.policy_digest, *sampler, prompt.model_text, noise_seed)

    def digest(self, planned: PlannedClips) -> str:
        """Return what a file on disk must say to stand for the planned clips."""
        clips = [self.clip_id(planned.prompt, seed) for seed in self.noise_seeds(planned)]
        return content_id(planned.kind, planned.dimension, *clips)

    def task(self, planned: PlannedClips, label: str) -> GroupTask:
        """Return the group that renders them: Euler steps, no noise on the way."""
        seeds = self.noise_seeds(planned)
        plan = ode_plan(self.sigmas, num_noises=planned.num_clips)
        return GroupTask(
            group_id=f"{label}-{planned.place:06d}",
            lease_id="",
            prompt=planned.prompt,
            plan=plan,
            noise_seeds=seeds,
            step_seeds=seeds,
            guidance_scale=self.guidance_scale,
        )

    def records(
        self,
        planned: PlannedClips,
        file: str,
        scores: Sequence[dict[str, float]],
        contents: list[str],
    ) -> list[ClipRecord]:
        """Return the rows of the clips, before a reward is made of their scores."""
        return [
            ClipRecord(
                clip_id=self.clip_id(planned.prompt, seed),
                kind=planned.kind,
                text=planned.prompt.text,
                prompt_id=planned.prompt.prompt_id,
                dimension=planned.dimension,
                facts=planned.prompt.facts,
                origin=f"policy:{self.policy_digest}",
                seed=seed,
                file=file,
                row=row,
                content=contents[row],
                scores=scores[row],
            )
            for row, seed in enumerate(self.noise_seeds(planned))
        ]


def rendering_of(recipe: Recipe, policy: Policy) -> Rendering:
    """Return how the recipe's data engine renders with a policy."""
    engine, model = recipe.data_engine, recipe.model
    base = digest_folder(model_folder(model.model_copy(update={"path": policy.model_path})))
    lora = digest_folder(policy.lora_path) if policy.lora_path else ""
    return Rendering(
        policy_digest=content_id(base, lora),
        sigmas=recipe_sigmas(recipe, engine.num_denoising_steps),
        guidance_scale=engine.guidance_scale or recipe.rollout.guidance_scale,
        shape=(model.num_frames, model.height, model.width),
        seed=recipe.seed,
    )
