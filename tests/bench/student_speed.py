"""What distillation buys: seconds a clip of teacher and students, and a stream's. Prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.student_speed RUN

RUN is a finished run folder of `post_train_tiny_cpu` or of another recipe with students. All are
loaded in one process on one thread and take turns, each clip by itself from text to pixels: the
teacher in the framework's default steps and guidance, the teacher as the recipe evaluates it, and
every student in its own steps. Of a causal student also the stream: the first frames, a trained
clip's length, and four times that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvid.config import Recipe, RolloutConfig
from rlvid.config.inference import InferenceConfig
from rlvid.config.loader import load_recipe
from rlvid.config.phases import EvaluateConfig
from rlvid.flow.prompt_condition import prompt_condition
from rlvid.flow.sampler import initial_noise, sample_ode
from rlvid.inference.optimise import optimise
from rlvid.launch.phases.base import RunStage
from rlvid.launch.run import artifacts_of
from rlvid.launch.sample import open_stream
from rlvid.models.noise_levels import sampling_sigmas
from rlvid.models.policy import Policy, open_policy
from rlvid.models.student import Student
from rlvid.records import Prompt
from tests.bench.timing import environment

TEXT = "a red ball falls to the left while the camera stays still"
TURNS = 15
LONGER = 4
"""Times the trained length that is streamed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="finished run folder")
    parser.add_argument("--turns", type=int, default=TURNS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(str(arguments.run / "recipe.yaml"))
    stages = artifacts_of(arguments.run).stages
    calls, settings = clip_calls(recipe, stages)
    seconds = take_turns(calls, arguments.turns)
    slowest = seconds["teacher by default"]
    rows = [
        {
            "what": name,
            **settings[name],
            "seconds_a_clip": round(seconds[name], 4),
            "times_faster_than_default": round(slowest / seconds[name], 2),
        }
        for name in calls
    ]
    streams = [stream_times(recipe, stage) for stage in stages if _is_causal(stage.policy)]
    result = {"environment": environment(torch.device("cpu")), "clips": rows, "streams": streams}
    print(json.dumps(result, indent=1))


def clip_calls(
    recipe: Recipe, stages: tuple[RunStage, ...]
) -> tuple[dict[str, Callable[[int], object]], dict[str, dict[str, Any]]]:
    """Return by name what makes a clip from a seed, and in how many steps it does."""
    by_name = {stage.name: stage for stage in stages}
    students = [stage for stage in stages if stage.policy.sampling is not None]
    assert students, "the run left no student"
    taught_by = students[0].teacher
    assert taught_by is not None, "a student without a teacher"
    teacher = by_name[taught_by].policy
    guidance = recipe.evaluate.guidance_scale or recipe.rollout.guidance_scale
    samplers = {
        "teacher by default": (
            EvaluateConfig().num_denoising_steps,
            RolloutConfig().guidance_scale,
        ),
        "teacher as evaluated": (recipe.evaluate.num_denoising_steps, guidance),
    }
    calls: dict[str, Callable[[int], object]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for name, (steps, scale) in samplers.items():
        calls[name] = partial(
            teacher_clip, open_policy(teacher, recipe.model), recipe, steps, scale
        )
        branches = 1 if scale == 1.0 else 2
        settings[name] = {"steps": steps, "guidance": scale, "forwards": steps * branches}
    for stage in students:
        sampling = stage.policy.sampling
        assert sampling is not None
        model = open_policy(stage.policy, recipe.model)
        student = Student(model, sampling, dtype=recipe.model.dtype)
        calls[stage.name] = partial(student_clip, model, student, recipe)
        settings[stage.name] = {
            "steps": len(sampling.sigmas),
            "is_causal": _is_causal(stage.policy),
        }
    return calls, settings


@torch.no_grad()
def teacher_clip(model: Any, recipe: Recipe, steps: int, guidance: float, seed: int) -> Tensor:
    """Return the clip [T, 3, H, W] of the deterministic sampler."""
    config = recipe.model
    sigmas = sampling_sigmas(recipe.rollout.shift, config, steps)
    shape = model.latent_shape(config.num_frames, config.height, config.width)
    optimised = optimise(model, InferenceConfig())
    with optimised.clip() as clip:
        prompt = Prompt(prompt_id="speed", text=TEXT)
        condition, negative = prompt_condition(
            model, [prompt], shape, encode_prompts=clip.encode_prompts
        )

        def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
            return clip.guided_velocity(latents, sigma, condition, negative, guidance)

        return optimised.decode(sample_ode(velocity, initial_noise(seed, shape)[None], sigmas))[0]


@torch.no_grad()
def student_clip(model: Any, student: Student, recipe: Recipe, seed: int) -> Tensor:
    """Return the clip [T, 3, H, W] of a student, whole."""
    config = recipe.model
    shape = model.latent_shape(config.num_frames, config.height, config.width)
    decoded: Tensor = model.decode(student.generate([seed], shape, model.encode_prompts([TEXT])))
    return decoded[0]


def take_turns(calls: dict[str, Callable[[int], object]], turns: int) -> dict[str, float]:
    """Return the median seconds of each call; they alternate, so a busy moment meets all."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-1, turns):  # the first is to warm up
        for name, call in calls.items():
            start = time.perf_counter()
            call(max(turn, 0))
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def stream_times(recipe: Recipe, stage: RunStage) -> dict[str, Any]:
    """Return seconds to the first frames, to a trained clip, and of one as long as `LONGER`."""
    trained = recipe.model.num_frames
    wanted = LONGER * (trained - 1) + 1
    runs = []
    for seed in range(5):
        stream = open_stream(TEXT, stage.policy, recipe.model, seed=seed, num_frames=wanted)
        seen = [(part.frames.shape[0], part.elapsed_s) for part in stream]
        counts = [sum(count for count, _ in seen[: place + 1]) for place in range(len(seen))]
        at = next(s for n, (_, s) in zip(counts, seen, strict=True) if n >= trained)
        runs.append((seen[0][1], at, seen[-1][1]))
    first, whole, longer = (statistics.median(values) for values in zip(*runs[1:], strict=True))
    return {
        "what": stage.name,
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
