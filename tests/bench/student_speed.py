"""What distillation buys: seconds a clip of teacher and students, and a stream's. Prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.student_speed RUN

RUN is a finished run folder of `post_train_tiny_cpu` or of another recipe with students. All are
loaded in one process on one thread and take turns, each clip by itself from text to pixels: the
teacher in the framework's default steps and guidance, the teacher as the recipe evaluates it, and
every student in its own steps. Each clip is decoded by the VAE and by a slim decoder, and counts
with either; the slim one is that of `--slim-decoder`, or trained here on the teacher's clips, and
its PSNR against the VAE is of clips of held-out prompts. Of a causal student also the stream: the
first frames, a trained clip's length, and four times that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from rlvid.config import Recipe, RolloutConfig
from rlvid.config.inference import InferenceConfig
from rlvid.config.loader import load_recipe
from rlvid.config.phases import EvaluateConfig
from rlvid.flow.prompt_condition import prompt_condition
from rlvid.flow.sampler import initial_noise, sample_ode
from rlvid.inference.measure import sample_latents
from rlvid.inference.optimise import optimise
from rlvid.inference.slim_decoder import SlimDecoder
from rlvid.inference.slim_folder import load_slim_decoder, vae_of
from rlvid.launch.heldout import heldout_prompts
from rlvid.launch.optimise import sampling_job
from rlvid.launch.phases.base import RunStage
from rlvid.launch.run import artifacts_of
from rlvid.launch.sample import open_stream
from rlvid.launch.slim_decoder import SlimSettings, compare_decoders, make_slim_decoder
from rlvid.models.base import VideoModel
from rlvid.models.noise_levels import sampling_sigmas
from rlvid.models.policy import Policy, open_policy
from rlvid.models.student import Student
from rlvid.records import Prompt
from tests.bench.timing import environment

TEXT = "a red ball falls to the left while the camera stays still"
TURNS = 15
NUM_HELDOUT = 16
LONGER = 4
"""Times the trained length that is streamed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A policy and how its latents are made."""

    policy: Policy
    latents: Callable[[int], Tensor]
    """Seed to [1, C, F, h, w], text and all."""
    model: VideoModel
    about: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Medians, of one clip."""

    denoise: float
    by_vae: float
    by_slim: float

    def of(self, decoder: str) -> tuple[float, float]:
        """Return (seconds of decoding, seconds of the clip) with the decoder of that name."""
        decode = self.by_vae if decoder == "vae" else self.by_slim
        return decode, self.denoise + decode


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="finished run folder")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--slim-decoder", type=Path, help="that rlvid slim-decoder wrote")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(str(arguments.run / "recipe.yaml"))
    stages = artifacts_of(arguments.run).stages
    found = samplers(recipe, stages)
    with TemporaryDirectory() as temporary:
        folder = arguments.slim_decoder or Path(temporary)
        teacher = found["teacher as evaluated"]
        trained = None if arguments.slim_decoder else train_here(recipe, teacher.policy, folder)
        vae = vae_of(teacher.model)
        decoder = load_slim_decoder(folder, vae=vae, device=teacher.model.device)
        seconds = take_turns(found, decoder, arguments.turns)
        slim = InferenceConfig(slim_decoder=str(folder))
        streams = [
            stream_times(recipe, stage, name, inference)
            for stage in stages
            if _is_causal(stage.policy)
            for name, inference in (("vae", InferenceConfig()), ("slim", slim))
        ]
    result = {
        "environment": environment(torch.device("cpu")),
        "slim_decoder": {
            "parameters": sum(one.numel() for one in decoder.parameters()),
            "trained_here_s": trained,
            "psnr_db": {
                name: psnr_of(recipe, one, decoder)
                for name, one in found.items()
                if name != "teacher by default"
            },
        },
        "clips": clip_rows(found, seconds),
        "streams": streams,
    }
    print(json.dumps(result, indent=1))


def train_here(recipe: Recipe, policy: Policy, folder: Path) -> float:
    """Train a slim decoder with default settings; return the seconds."""
    began = time.perf_counter()
    make_slim_decoder(recipe, policy, SlimSettings(), folder)
    return round(time.perf_counter() - began, 1)


def clip_rows(found: dict[str, Sampler], seconds: dict[str, Seconds]) -> list[dict[str, Any]]:
    """Return a row for every sampler and decoder."""
    slowest = seconds["teacher by default"]
    rows = []
    for decoder in ("vae", "slim"):
        for name, sampler in found.items():
            decode_s, clip_s = seconds[name].of(decoder)
            rows.append(
                {
                    "what": name,
                    "decoder": decoder,
                    **sampler.about,
                    "denoise_s": round(seconds[name].denoise, 4),
                    "decode_s": round(decode_s, 4),
                    "seconds_a_clip": round(clip_s, 4),
                    "times_faster_than_default": round(slowest.of("vae")[1] / clip_s, 2),
                    "times_faster_with_the_same_decoder": round(slowest.of(decoder)[1] / clip_s, 2),
                }
            )
    return rows


def samplers(recipe: Recipe, stages: tuple[RunStage, ...]) -> dict[str, Sampler]:
    """Return by name what is timed, and in how many steps it makes a clip."""
    by_name = {stage.name: stage for stage in stages}
    students = [stage for stage in stages if stage.policy.sampling is not None]
    assert students, "the run left no student"
    taught_by = students[0].teacher
    assert taught_by is not None, "a student without a teacher"
    teacher = by_name[taught_by].policy
    guidance = recipe.evaluate.guidance_scale or recipe.rollout.guidance_scale
    settings = {
        "teacher by default": (
            EvaluateConfig().num_denoising_steps,
            RolloutConfig().guidance_scale,
        ),
        "teacher as evaluated": (recipe.evaluate.num_denoising_steps, guidance),
    }
    found = {}
    for name, (steps, scale) in settings.items():
        model = open_policy(teacher, recipe.model)
        forwards = steps * (1 if scale == 1.0 else 2)
        found[name] = Sampler(
            policy=teacher,
            latents=partial(teacher_latents, model, recipe, steps, scale),
            model=model,
            about={"steps": steps, "guidance": scale, "forwards": forwards},
        )
    for stage in students:
        sampling = stage.policy.sampling
        assert sampling is not None
        model = open_policy(stage.policy, recipe.model)
        student = Student(model, sampling, dtype=recipe.model.dtype)
        found[stage.name] = Sampler(
            policy=stage.policy,
            latents=partial(student_latents, model, student, recipe),
            model=model,
            about={"steps": len(sampling.sigmas), "is_causal": _is_causal(stage.policy)},
        )
    return found


@torch.no_grad()
def teacher_latents(
    model: VideoModel, recipe: Recipe, steps: int, guidance: float, seed: int
) -> Tensor:
    """Return the latents [1, C, F, h, w] of the deterministic sampler."""
    config = recipe.model
    sigmas = sampling_sigmas(recipe.rollout.shift, config, steps)
    shape = model.latent_shape(config.num_frames, config.height, config.width)
    with optimise(model, InferenceConfig()).clip() as clip:
        prompt = Prompt(prompt_id="speed", text=TEXT)
        condition, negative = prompt_condition(
            model, [prompt], shape, encode_prompts=clip.encode_prompts
        )

        def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
            return clip.guided_velocity(latents, sigma, condition, negative, guidance)

        return sample_ode(velocity, initial_noise(seed, shape)[None], sigmas)


@torch.no_grad()
def student_latents(model: VideoModel, student: Student, recipe: Recipe, seed: int) -> Tensor:
    """Return the latents [1, C, F, h, w] of a student, whole."""
    config = recipe.model
    shape = model.latent_shape(config.num_frames, config.height, config.width)
    return student.generate([seed], shape, model.encode_prompts([TEXT]))


def take_turns(found: dict[str, Sampler], decoder: SlimDecoder, turns: int) -> dict[str, Seconds]:
    """Return the medians; all alternate, so a busy moment meets all."""
    seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in found}
    for turn in range(-1, turns):  # the first is to warm up
        for name, sampler in found.items():
            began = time.perf_counter()
            latents = sampler.latents(max(turn, 0))
            denoised = time.perf_counter()
            sampler.model.decode(latents)
            decoded = time.perf_counter()
            decoder.decode(latents)
            if turn >= 0:
                by_slim = time.perf_counter() - decoded
                seconds[name].append((denoised - began, decoded - denoised, by_slim))
    medians = {
        name: [statistics.median(of) for of in zip(*v, strict=True)] for name, v in seconds.items()
    }
    return {
        name: Seconds(denoise=denoise, by_vae=by_vae, by_slim=by_slim)
        for name, (denoise, by_vae, by_slim) in medians.items()
    }


def psnr_of(recipe: Recipe, sampler: Sampler, decoder: SlimDecoder) -> dict[str, float]:
    """Return the PSNR of slim clips against the VAE's, on held-out prompts as evaluated."""
    prompts = heldout_prompts(recipe, NUM_HELDOUT)
    job = sampling_job(recipe, sampler.policy, sampler.model, prompts)
    plain = optimise(sampler.model, InferenceConfig())
    latents = torch.cat(list(sample_latents(plain, job)))
    report = compare_decoders(sampler.model, decoder, latents)
    return {"mean": round(report.psnr_db, 2), "least": round(report.psnr_db_min, 2)}


def stream_times(
    recipe: Recipe, stage: RunStage, decoder: str, inference: InferenceConfig
) -> dict[str, Any]:
    """Return seconds to the first frames, to a trained clip, and of one as long as `LONGER`."""
    trained = recipe.model.num_frames
    wanted = LONGER * (trained - 1) + 1
    runs = []
    for seed in range(5):
        stream = open_stream(
            TEXT, stage.policy, recipe.model, seed=seed, num_frames=wanted, inference=inference
        )
        seen = [(part.frames.shape[0], part.elapsed_s) for part in stream]
        counts = [sum(count for count, _ in seen[: place + 1]) for place in range(len(seen))]
        at = next(s for n, (_, s) in zip(counts, seen, strict=True) if n >= trained)
        runs.append((seen[0][1], at, seen[-1][1]))
    first, whole, longer = (statistics.median(values) for values in zip(*runs[1:], strict=True))
    return {
        "what": stage.name,
        "decoder": decoder,
        "first_frames": seen[0][0],
        "first_frames_s": round(first, 4),
        "frames": trained,
        "frames_s": round(whole, 4),
        "longer_frames": wanted,
        "longer_s": round(longer, 4),
        "frames_a_second": round((wanted - seen[0][0]) / (longer - first), 1),
    }


def _is_causal(policy: Policy) -> bool:
    return policy.sampling is not None and policy.sampling.layout is not None


if __name__ == "__main__":
    main()
