"""Times rlvid's rollout and training code on a Wan transformer of real size and random weights.

What is timed is the code a run goes through: `WanModel.velocity` under `guided_velocity`,
`RolloutWorker.sample` (one isotemporal plan, so `sample_group`), and the GRPO loss over `assemble`,
`forward_batches` and `select_forward` with a LoRA, activation checkpointing and AdamW. Left out:
text encoder, VAE, rewards, Ray, DeepSpeed and weights publishing. FLOPs are those of `wan_flops`.

    python -m tests.bench.wan_shape --size 1.3b --frames 33 --dtype bfloat16
    python -m tests.bench.wan_shape --size tiny
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from rlvid.actors.rollout_worker import RolloutWorker
from rlvid.algorithms.base import LossTerms, metric_values
from rlvid.algorithms.batch import assemble, forward_batches, select_forward
from rlvid.algorithms.grpo import Grpo
from rlvid.condition import Condition
from rlvid.config import AlgorithmConfig, LearnerConfig, LoraConfig, ModelConfig, RolloutConfig
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.step_plans import make_step_plan
from rlvid.flow.step_weights import update_step_weights
from rlvid.models.lora import add_lora, trainable_parameters
from rlvid.models.wan import PROMPT_EMBEDS, WanModel
from rlvid.records import GroupTask, LearnerBatch, Prompt, RolloutGroup
from rlvid.seeds import derive_seed
from tests.bench.timing import environment, measure
from tests.bench.wan_flops import (
    SIZES,
    RowFlops,
    WanSize,
    count_tokens,
    latent_shape,
    row_flops,
)

RESULTS = Path(__file__).parent / "results"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_PROMPT = Prompt(prompt_id="bench", text="bench")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """One measurement."""

    size: WanSize
    num_frames: int
    height: int
    width: int
    dtype: str = "float32"
    device: str = "cpu"
    rollout: RolloutConfig = RolloutConfig(group_size=4, shift=3.0)
    repeats: int = 3
    """Timed runs of each stage, after one to warm up."""

    @property
    def branches(self) -> int:
        """Transformer rows of one latent."""
        return 1 if self.rollout.guidance_scale == 1.0 else 2


class ShapeModel(WanModel):
    """WanModel with its own `velocity`, random weights, and neither text encoder nor VAE."""

    def __init__(self, settings: BenchSettings) -> None:
        # Not the parent's: that takes a whole pipeline, of which only the transformer is timed.
        self.device = torch.device(settings.device)
        self._dtype = DTYPES[settings.dtype]
        self._size = settings.size
        self._embeds: dict[str, Tensor] = {}
        self.transformer = build_transformer(settings.size, self.device, self._dtype)

    def encode_prompts(self, texts: Sequence[str]) -> Condition:
        """Return noise [B, L, D] of the text encoder's shape; other texts, other noise."""
        shape = (self._size.text_tokens, self._size.text_dim)
        for text in set(texts) - set(self._embeds):
            seed = derive_seed(0, text)
            drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            self._embeds[text] = drawn.to(self.device)
        return Condition({PROMPT_EMBEDS: torch.stack([self._embeds[text] for text in texts])})

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        return latent_shape(self._size, num_frames=num_frames, height=height, width=width)


def build_transformer(
    size: WanSize, device: torch.device, dtype: torch.dtype
) -> WanTransformer3DModel:
    """Return a seeded random transformer, built on `device`, in the dtypes of a loaded one.

    `from_pretrained` keeps some modules in float32 and `to(dtype)` does not, hence the loop.
    """
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), device:
        torch.manual_seed(0)
        transformer = WanTransformer3DModel(
            patch_size=size.patch_size,
            num_attention_heads=size.num_heads,
            attention_head_dim=size.head_dim,
            in_channels=size.channels,
            out_channels=size.channels,
            text_dim=size.text_dim,
            freq_dim=size.freq_dim,
            ffn_dim=size.ffn_dim,
            num_layers=size.num_layers,
        )
    kept = set(transformer._keep_in_fp32_modules)
    for name, parameter in transformer.named_parameters():
        if not kept & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return transformer.eval()


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
    positive, negative = model.encode_prompts([_PROMPT.text]), model.encode_prompts([""])
    scale = settings.rollout.guidance_scale
    timing = measure(
        lambda: guided_velocity(model, latents, sigma, positive, negative, scale),
        model.device,
        repeats=settings.repeats,
    )
    return timing.to_json(flops=settings.branches * _row_flops(settings).forward)


def measure_rollout(
    model: ShapeModel, settings: BenchSettings
) -> tuple[RolloutGroup, dict[str, Any]]:
    """Time a group as a rollout actor samples it; return the group as well."""
    clip = ModelConfig(num_frames=settings.num_frames, height=settings.height, width=settings.width)
    worker = RolloutWorker(model, clip, actor_id="bench", mode="lora")
    size = settings.rollout.group_size
    plan = make_step_plan(settings.rollout, recipe_seed=0, prompt_id=_PROMPT.prompt_id, step=0)
    task = GroupTask(
        group_id="000000-00",
        lease_id="bench",
        prompt=_PROMPT,
        plan=plan,
        noise_seeds=tuple(plan.noise_index(index, size) for index in range(size)),
        step_seeds=tuple(range(100, 100 + size)),
        guidance_scale=settings.rollout.guidance_scale,
    )
    groups: list[RolloutGroup] = []

    def sample() -> None:
        groups[:] = [worker.sample(task)]

    timing = measure(sample, model.device, repeats=settings.repeats)
    rows = groups[0].num_forwards * settings.branches
    return groups[0], {
        **timing.to_json(flops=rows * _row_flops(settings).forward),
        "seconds_per_rollout": timing.median_s / size,
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
    flops = forwards * settings.branches * _row_flops(settings).trained
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
    from tests.bench.activation_bytes import Case, predicted

    frames, height, width = model.latent_shape(
        settings.num_frames, settings.height, settings.width
    )[1:]
    case = Case(
        size=settings.size,
        dtype="bfloat16" if settings.dtype == "bfloat16" else "float32",
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
    model: ShapeModel, batch: LearnerBatch, config: AlgorithmConfig, guidance_scale: float
) -> list[LossTerms]:
    """Run forward and backward over the rollout's own batches, as the learner does."""
    condition = model.encode_prompts([batch.prompt.model_text])
    negative = model.encode_prompts([""])
    total_rows = int(batch.trained.sum())
    collected = []
    for rows in forward_batches(batch):
        part = select_forward(batch, rows)
        unique = part.unique_rows
        velocity = guided_velocity(
            model, part.latents[unique], part.sigma[unique], condition, negative, guidance_scale
        )
        terms = Grpo().loss(part, velocity, config=config)
        (terms.loss_sum / total_rows).backward()
        collected.append(replace(terms, loss_sum=terms.loss_sum.detach()))
    return collected


def _row_flops(settings: BenchSettings) -> RowFlops:
    shape = latent_shape(
        settings.size,
        num_frames=settings.num_frames,
        height=settings.height,
        width=settings.width,
    )
    return row_flops(settings.size, count_tokens(settings.size, shape))


def parse_settings(arguments: Sequence[str] | None = None) -> tuple[BenchSettings, str]:
    """Return the settings and the name of the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="1.3b")
    parser.add_argument("--frames", type=int, help="pixel frames; 33, or 5 for tiny")
    parser.add_argument("--height", type=int, help="pixels; 480, or 32 for tiny")
    parser.add_argument("--width", type=int, help="pixels; 832, or 32 for tiny")
    parser.add_argument("--layers", type=int, help="fewer than the size has")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--denoising-steps", type=int, default=10)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--initial-noise", choices=["shared", "independent"], default="shared")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--name", help="of the file in results/; made of the settings if absent")
    given = parser.parse_args(arguments)
    size: WanSize = SIZES[given.size]
    if given.size == "tiny":
        given.device = "cpu"
    frames, height, width = (5, 32, 32) if given.size == "tiny" else (33, 480, 832)
    settings = BenchSettings(
        size=replace(size, num_layers=given.layers or size.num_layers),
        num_frames=given.frames or frames,
        height=given.height or height,
        width=given.width or width,
        dtype=given.dtype,
        device=given.device,
        rollout=RolloutConfig(
            shift=3.0,
            group_size=given.group_size,
            num_denoising_steps=given.denoising_steps,
            guidance_scale=given.guidance_scale,
            initial_noise=given.initial_noise,
        ),
        repeats=given.repeats,
    )
    kind = torch.device(settings.device).type
    name = f"{kind}_{size.name}_{settings.num_frames}f_{settings.dtype}"
    return settings, given.name or name


def main() -> None:
    settings, name = parse_settings()
    text = json.dumps(run_bench(settings), indent=1)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
