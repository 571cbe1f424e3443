"""Times rlvid's rollout and training code on a Wan transformer of real size and random weights.

What is timed is the code a run goes through: `WanModel.velocity` under `guided_velocity`,
`RolloutWorker.sample` (one isotemporal plan, so `sample_group`), and the GRPO loss over `assemble`,
`forward_batches` and `select_forward` with a LoRA, activation checkpointing and AdamW. Left out:
text encoder, VAE, rewards, Ray, DeepSpeed and weights publishing; an iteration with VAE and rewards
is `wan_iteration`. FLOPs are those of `wan_flops`.

    python -m tests.bench.wan_shape --size 1.3b --frames 33 --dtype bfloat16
    python -m tests.bench.wan_shape --size tiny
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from rlvid.actors.rollout_worker import RolloutWorker
from rlvid.algorithms.base import LossTerms, metric_values
from rlvid.algorithms.batch import assemble, forward_batches, select_forward
from rlvid.algorithms.grpo import Grpo
from rlvid.config import AlgorithmConfig, LearnerConfig, LoraConfig, RolloutConfig
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.step_weights import update_step_weights
from rlvid.models.lora import add_lora, trainable_parameters
from rlvid.records import LearnerBatch, RolloutGroup
from tests.bench.activation_bytes import Case, predicted
from tests.bench.timing import environment, measure
from tests.bench.wan_flops import count_tokens
from tests.bench.wan_model import (
    PROMPT,
    BenchSettings,
    ShapeModel,
    flops_of_row,
    group_task,
)
from tests.bench.wan_options import result_name, shape_parser, shape_settings

RESULTS = Path(__file__).parent / "results"


def run_bench(settings: BenchSettings) -> dict[str, Any]:
    """Measure every stage and return the result as JSON values."""
    lora = LoraConfig(rank=16)
    model = ShapeModel(settings)
    shape = model.latent_shape(settings.num_frames, settings.height, settings.width)
    num_parameters = sum(parameter.numel() for parameter in model.transformer.parameters())
    add_lora(model.transformer, lora)
    group, rollout = measure_rollout(model, settings)
    forward = measure_forward(model, settings)
    training, checks = measure_training(model, settings, group)
    return {
        "model": {
            **asdict(settings.size),
            "weights": "random",
            "num_parameters": num_parameters,
            "lora_rank": lora.rank,
            "dtype": settings.dtype,
        },
        "clip": [settings.num_frames, settings.height, settings.width],
        "latents": list(shape),
        "tokens": count_tokens(settings.size, shape),
        "group_size": settings.rollout.group_size,
        "num_denoising_steps": settings.rollout.num_denoising_steps,
        "guidance_scale": settings.rollout.guidance_scale,
        "initial_noise": settings.rollout.initial_noise,
        "trained_step": group.plan.trained_steps[0],
        "repeats": settings.repeats,
        "denoising_forward": forward,
        "rollout": rollout,
        "training_step": training,
        "planned_peak_gib": planned_peaks(model, settings, training["latent_forwards"]),
        "checks": checks,
        "environment": environment(model.device),
    }


@torch.no_grad()
def measure_forward(model: ShapeModel, settings: BenchSettings) -> dict[str, Any]:
    """Time one guided velocity of one latent, both branches."""
    shape = model.latent_shape(settings.num_frames, settings.height, settings.width)
    latents = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    sigma = torch.full((1,), 0.7, device=model.device)
    positive, negative = model.encode_prompts([PROMPT.text]), model.encode_prompts([""])
    scale = settings.rollout.guidance_scale
    timing = measure(
        lambda: guided_velocity(model, latents, sigma, positive, negative, scale),
        model.device,
        repeats=settings.repeats,
    )
    return timing.to_json(flops=settings.branches * flops_of_row(settings).forward)


def measure_rollout(
    model: ShapeModel, settings: BenchSettings
) -> tuple[RolloutGroup, dict[str, Any]]:
    """Time a group as a rollout actor samples it; return the group as well."""
    worker = RolloutWorker(model, settings.clip, actor_id="bench", mode="lora")
    task = group_task(settings.rollout)
    groups: list[RolloutGroup] = []

    def sample() -> None:
        groups[:] = [worker.sample(task)]

    timing = measure(sample, model.device, repeats=settings.repeats)
    rows = groups[0].num_forwards * settings.branches
    return groups[0], {
        **timing.to_json(flops=rows * flops_of_row(settings).forward),
        "seconds_per_rollout": timing.median_s / settings.rollout.group_size,
        "latent_forwards": groups[0].num_forwards,
    }


def measure_training(
    model: ShapeModel, settings: BenchSettings, group: RolloutGroup
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time optimiser steps on a group; return timing and what the first step says of itself."""
    transformer: Any = model.transformer
    transformer.enable_gradient_checkpointing()
    parameters = list(trainable_parameters(transformer, "lora").values())
    learner = LearnerConfig()
    optimizer = torch.optim.AdamW(parameters, lr=learner.optimizer.learning_rate)
    config = AlgorithmConfig()
    batch = learner_batch(group, config, model.device)
    seen: list[dict[str, float]] = []

    def step() -> None:
        terms = accumulate(model, batch, config, settings.rollout.guidance_scale)
        norm = torch.nn.utils.clip_grad_norm_(parameters, learner.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen.append({**metric_values(terms), "grad_norm": float(norm)})

    forwards = batch.unique_rows.numel()
    timing = measure(step, model.device, repeats=settings.repeats)
    flops = forwards * settings.branches * flops_of_row(settings).trained
    checks = {
        "replay_drift_max": seen[0]["ratio_deviation_max"],
        "clip_range": config.clip_range,
        "ratio_deviation_last": seen[-1]["ratio_deviation_max"],
        "grad_norm_first": seen[0]["grad_norm"],
        "num_optimizer_steps": len(seen),
        "is_finite": bool(torch.tensor([list(one.values()) for one in seen]).isfinite().all())
        and all(bool(parameter.isfinite().all()) for parameter in parameters),
    }
    return {**timing.to_json(flops=flops), "latent_forwards": forwards}, checks


def planned_peaks(
    model: ShapeModel, settings: BenchSettings, learned_latents: int
) -> dict[str, float]:
    """Return the peaks that the planner's formulas give, to be held against the measured ones.

    Weights and activations; in training also the adapter's gradients and Adam's moments. What
    torch's kernels take for themselves is in the measured ones only.
    """
    frames, height, width = model.latent_shape(
        settings.num_frames, settings.height, settings.width
    )[1:]
    case = Case(
        size=settings.size,
        dtype=settings.clip.dtype,
        mode="denoise",
        latent=(frames, height, width),
    )
    parameters = list(model.transformer.parameters())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    trained = sum(p.numel() for p in trainable_parameters(model.transformer, "lora").values())
    rows = settings.branches * settings.rollout.group_size
    learned = replace(case, mode="lora", checkpoints=True, rows=settings.branches * learned_latents)
    return {
        "denoising_forward": (weights + predicted(replace(case, rows=settings.branches))) / 2**30,
        "rollout": (weights + predicted(replace(case, rows=rows))) / 2**30,
        "training_step": (weights + 12 * trained + predicted(learned)) / 2**30,
    }


def learner_batch(
    group: RolloutGroup, config: AlgorithmConfig, device: torch.device
) -> LearnerBatch:
    """Return the rows of a group whose rewards rise evenly from rollout to rollout."""
    scores = {"bench": torch.linspace(0.0, 1.0, len(group.rollouts))[None]}
    credit = Grpo().credit(scores, {"bench": 1.0}, config.advantage)
    [weights] = update_step_weights(config.step_weight, [group.plan])
    return assemble(
        group, credit.advantage[0], credit.trained[0], step_weights=weights, device=device
    )


def accumulate(
    model: ShapeModel,
    batch: LearnerBatch,
    config: AlgorithmConfig,
    guidance_scale: float,
    *,
    phase: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> list[LossTerms]:
    """Run forward and backward over the rollout's own batches, as the learner does.

    Args:
        phase: holds what is done of "replay", the forward, and of "train", the backward.
    """
    condition = model.encode_prompts([batch.prompt.model_text])
    negative = model.encode_prompts([""])
    total_rows = int(batch.trained.sum())
    collected = []
    for rows in forward_batches(batch):
        part = select_forward(batch, rows)
        unique = part.unique_rows
        with phase("replay"):
            velocity = guided_velocity(
                model, part.latents[unique], part.sigma[unique], condition, negative, guidance_scale
            )
            terms = Grpo().loss(part, velocity, config=config)
        with phase("train"):
            (terms.loss_sum / total_rows).backward()
        collected.append(replace(terms, loss_sum=terms.loss_sum.detach()))
    return collected


def parse_settings(arguments: Sequence[str] | None = None) -> tuple[BenchSettings, str]:
    """Return the settings and the name of the result."""
    parser = shape_parser(__doc__, frames=33, repeats=3)
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--denoising-steps", type=int, default=10)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    given = parser.parse_args(arguments)
    rollout = RolloutConfig(
        shift=3.0,
        group_size=given.group_size,
        num_denoising_steps=given.denoising_steps,
        guidance_scale=given.guidance_scale,
        initial_noise=given.initial_noise,
    )
    settings = shape_settings(given, rollout)
    return settings, given.name or result_name(settings)


def main() -> None:
    settings, name = parse_settings()
    text = json.dumps(run_bench(settings), indent=1)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
