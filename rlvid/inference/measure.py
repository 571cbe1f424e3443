"""Speed and distance of a setting beside the plain model: same prompts, same noise, turn by turn.

Letters: N clips of P prompts with S seeds each, prompt by prompt; T frames, H W pixels, D features.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.config.inference import InferenceConfig
from rlvid.flow.prompt_condition import prompt_condition
from rlvid.flow.sampler import initial_noise, sample_ode
from rlvid.inference.optimise import OptimisedModel, optimise
from rlvid.inference.search import LeftOut, Point
from rlvid.records import Prompt
from rlvid.seeds import derive_seed

if TYPE_CHECKING:
    from rlvid.models.base import VideoModel

PSNR_OF_EQUALS = 100.0
"""dB; stands for the infinity of equal clips, which would swallow every mean."""

Generate = Callable[[Sequence[int], Condition], Tensor]
"""(B seeds, condition of B rows) -> clean latents [B, C, F, h, w]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is sampled to measure a setting."""

    prompts: tuple[Prompt, ...]
    num_seeds: int
    latent_shape: tuple[int, int, int, int]
    sigmas: tuple[float, ...]
    """[K+1], 1 down to 0."""
    guidance_scale: float
    repeats: int
    """Timed pairs, after one that warms up."""
    generate: Generate | None = None
    """How a distilled student makes latents, without `sigmas` and guidance; None takes these."""

    @property
    def num_clips(self) -> int:
        return len(self.prompts) * self.num_seeds

    @property
    def clip_prompts(self) -> list[Prompt]:
        """[N] the prompt of each clip."""
        return [prompt for prompt in self.prompts for _ in range(self.num_seeds)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """What clips are compared by."""

    features: Callable[[Tensor], Tensor]
    """[N, T, 3, H, W] in [0, 1] -> [N, D]."""
    reward: Callable[[Tensor, Sequence[Prompt]], float]
    """[N, T, 3, H, W] and N prompts -> their mean reward."""


@torch.no_grad()
def sample_clips(optimised: OptimisedModel, job: Job) -> Tensor:
    """Return the job's clips [N, T, 3, H, W] in [0, 1] on the CPU."""
    return torch.cat([optimised.decode(part).cpu() for part in sample_latents(optimised, job)])


@torch.no_grad()
def sample_latents(optimised: OptimisedModel, job: Job) -> Iterator[Tensor]:
    """Yield the job's latents [B, C, F, h, w], those of `batch_prompts` prompts at a time."""
    at_once = optimised.config.batch_prompts
    for first in range(0, len(job.prompts), at_once):
        yield _sample_together(optimised, job, job.prompts[first : first + at_once])


def _sample_together(optimised: OptimisedModel, job: Job, prompts: Sequence[Prompt]) -> Tensor:
    """Return the latents of some prompts, sampled in one batch; of no student by Euler steps."""
    seeds = [
        derive_seed(0, prompt.prompt_id, "optimise", seed)
        for prompt in prompts
        for seed in range(job.num_seeds)
    ]
    with optimised.clip() as clip:
        condition, negative = prompt_condition(
            optimised.model, prompts, job.latent_shape, encode_prompts=clip.encode_prompts
        )
        condition = condition.repeat_interleave(job.num_seeds)
        if job.generate is not None:
            return job.generate(seeds, condition)
        if negative.num_rows > 1:
            negative = negative.repeat_interleave(job.num_seeds)

        def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
            return clip.guided_velocity(latents, sigma, condition, negative, job.guidance_scale)

        noise = torch.stack([initial_noise(seed, job.latent_shape) for seed in seeds])
        return sample_ode(velocity, noise.to(optimised.model.device), job.sigmas)


class Bench:
    """Measures settings of one model against its plain clips."""

    def __init__(self, model: VideoModel, job: Job, judges: Judges) -> None:
        """Sample the plain clips and judge them."""
        self._model = model
        self._job = job
        self._judges = judges
        self._clips = sample_clips(optimise(model, InferenceConfig()), job)
        self._features = judges.features(self._clips)
        self._reward = judges.reward(self._clips, job.clip_prompts)

    def measure(self, config: InferenceConfig) -> Point | LeftOut:
        """Measure one setting; LeftOut where this machine or model cannot run it."""
        try:
            optimised = optimise(self._model, config)
        except ValueError as error:
            return LeftOut(config=config, reason=str(error))
        try:
            return self._point(optimised)
        finally:
            optimised.undo()

    def _point(self, optimised: OptimisedModel) -> Point:
        clips = sample_clips(optimised, self._job)
        psnr = psnr_db(clips, self._clips)
        pairs = [self._timed_pair(optimised, turn) for turn in range(self._job.repeats)]
        ratios = [plain / own for plain, own in pairs]
        is_plain = optimised.config == InferenceConfig()
        features = self._judges.features(clips)
        cosine = torch.cosine_similarity(features, self._features, dim=-1)
        return Point(
            config=optimised.config,
            seconds=statistics.median(own for _, own in pairs),
            speedup=1.0 if is_plain else statistics.median(ratios),
            speedup_range=(min(ratios), max(ratios)),
            psnr_db=float(psnr.mean()),
            psnr_db_min=float(psnr.min()),
            feature_distance=float((1.0 - cosine).clamp(min=0.0).mean()),
            reward_change=self._judges.reward(clips, self._job.clip_prompts) - self._reward,
        )

    def _timed_pair(self, optimised: OptimisedModel, turn: int) -> tuple[float, float]:
        """Return seconds a clip of the plain model and of the setting, every other turn first."""
        own_s = self._timed(optimised) if turn % 2 else None
        with optimised.plain():
            plain_s = self._timed(OptimisedModel(optimised.model, InferenceConfig()))
        return plain_s, self._timed(optimised) if own_s is None else own_s

    def _timed(self, optimised: OptimisedModel) -> float:
        self._synchronise()
        began = time.perf_counter()
        sample_clips(optimised, self._job)
        self._synchronise()
        return (time.perf_counter() - began) / self._job.num_clips

    def _synchronise(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)


def psnr_db(clips: Tensor, reference: Tensor) -> Tensor:
    """[N, T, 3, H, W] in [0, 1], twice -> [N] 10 log10(1 / mean squared error), in dB.

    At most `PSNR_OF_EQUALS`, which equal clips have.
    """
    error = (clips.double() - reference.double()).square().flatten(1).mean(dim=1)
    return (-10.0 * error.log10()).clamp(max=PSNR_OF_EQUALS)
