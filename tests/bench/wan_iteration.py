"""Times a whole GRPO iteration on Wan's shape, phase by phase, beside what the planner says of it.

One group is denoised, decoded by a random Wan VAE, scored by three critics, replayed, learned from
with a LoRA under activation checkpointing and stepped on, in one process. Each part is the code of
a run: `RolloutWorker`, `DecodeWorker` with its guards, `ScorerWorker`, `assemble`, the GRPO loss.
Left out: text encoder, Ray, DeepSpeed and publishing. One stochastic and trained step, in the
middle of those that a run draws from, so that the planner counts the forwards of this very plan.

    python -m tests.bench.wan_iteration --dtype bfloat16                     # 1.3B, 81 x 480 x 832
    python -m tests.bench.wan_iteration --dtype bfloat16 --largest           # as deep as trains
    python -m tests.bench.wan_iteration --size tiny

A critic on the GPU is one that you have the weights of:

    --critic '{use: clip_score, device: cuda, config: {folder: clip-vit-large-patch14}}'
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
import yaml
from torch import Tensor

from rlvid.actors.rollout_worker import RolloutWorker
from rlvid.algorithms.base import metric_values
from rlvid.config import AlgorithmConfig, LearnerConfig, RolloutConfig, StepPlanConfig
from rlvid.config.rewards import ScorerConfig
from rlvid.models.lora import add_lora, trainable_parameters
from rlvid.models.wan_vae import WanVae
from rlvid.observability.mfu import device_name
from rlvid.records import RolloutGroup
from rlvid.rewards.decoding import DecodeWorker
from rlvid.rewards.scoring import ScoreItem, open_scorer_worker
from rlvid.vae_tiles import tile_vae
from tests.bench.phase_clock import PhaseClock
from tests.bench.timing import environment
from tests.bench.wan_flops import count_tokens
from tests.bench.wan_iteration_figures import Measured, figures
from tests.bench.wan_iteration_plan import CRITICS, LORA, Counts, vae_config
from tests.bench.wan_largest import find_largest
from tests.bench.wan_model import FPS, BenchSettings, ShapeModel, group_task
from tests.bench.wan_options import result_name, shape_parser, shape_settings
from tests.bench.wan_shape import RESULTS, accumulate, learner_batch


class Iteration:
    """What all roles of a run hold, in one process."""

    def __init__(self, settings: BenchSettings, critics: Sequence[ScorerConfig] = CRITICS) -> None:
        self.model = ShapeModel(settings)
        transformer: Any = self.model.transformer
        num_parameters = sum(parameter.numel() for parameter in transformer.parameters())
        add_lora(transformer, LORA)
        transformer.enable_gradient_checkpointing()
        self.parameters = list(trainable_parameters(transformer, "lora").values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=LearnerConfig().optimizer.learning_rate
        )
        self.vae = build_vae(settings, self.model.device)
        self.critics = {
            one.label: open_scorer_worker(one, place, counts_flops=True)
            for place, one in enumerate(critics)
        }
        self.critic_flops: dict[str, float | None] = {}
        """Of scoring one group."""
        self.worker = RolloutWorker(self.model, settings.clip, actor_id="bench", mode="lora")
        self.counts = Counts(
            transformer=num_parameters,
            trained=sum(parameter.numel() for parameter in self.parameters),
            vae=sum(parameter.numel() for parameter in self.vae.module.parameters()),
        )

    def run(self, rollout: RolloutConfig, clock: PhaseClock) -> dict[str, Any]:
        """Do one iteration and return what it says of itself."""
        with clock.phase("denoise"):
            group = self.worker.sample(group_task(rollout))
        scores, critic_s = self._score(group, clock)
        config = AlgorithmConfig()
        with clock.phase("replay"):
            # Clips of noise score alike and would teach nothing, so the learner is given rewards.
            batch = learner_batch(group, config, self.model.device)
        terms = accumulate(self.model, batch, config, rollout.guidance_scale, phase=clock.phase)
        with clock.phase("optimizer_step"):
            most = LearnerConfig().max_grad_norm
            norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, most))
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        finite = all(bool(parameter.isfinite().all()) for parameter in self.parameters)
        return {
            "sampled_latents": group.num_forwards,
            "learned_latents": batch.unique_rows.numel(),
            "critic_s": critic_s,
            "scores": scores,
            "replay_drift_max": metric_values(terms)["ratio_deviation_max"],
            "clip_range": config.clip_range,
            "grad_norm": norm,
            "is_finite": finite,
        }

    def _score(
        self, group: RolloutGroup, clock: PhaseClock
    ) -> tuple[dict[str, list[float | None]], dict[str, float]]:
        """Return the scores of each critic, None for what it could not judge, and its seconds."""

        def decode(latents: Tensor) -> Tensor:
            with clock.phase("decode"):
                return self.vae.decode(latents)

        with clock.phase("guards"):  # and pixels to bytes, on their way to the critics
            frames, info = DecodeWorker(decode, fps=FPS).decode(group)
        items = [
            ScoreItem(item_id=(0, row), prompt=group.prompt, source=0, row=row)
            for row in range(len(frames))
        ]
        scores, seconds = {}, {}
        for label, critic in self.critics.items():
            before = clock.seconds["critics"]
            with clock.phase("critics"):
                results = critic.score(items, [frames], fps=info.fps)
            seconds[label] = clock.seconds["critics"] - before
            failed = next((result for result in results if result.is_failure), None)
            if failed is not None:
                raise RuntimeError(f"{label}: {failed.error}")
            scores[label] = [result.value for result in results]
            self.critic_flops[label] = critic.flops(items, [frames], took_s=seconds[label])
        return scores, seconds


def build_vae(settings: BenchSettings, device: torch.device) -> WanVae:
    """Return a seeded random VAE, float32, of Wan's published shape; of the tiny size a narrow one.

    Raises:
        ValueError: `vae_tile` does not lie on whole latent positions.
    """
    from diffusers import AutoencoderKLWan

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae: Any = AutoencoderKLWan.from_config(vae_config(settings)).to(device)
    if settings.vae_tile is not None:
        tile_vae(vae, settings.vae_tile, settings.vae_tile * 3 // 4, where="--vae-tile")
    return WanVae(vae, device=device)


def run_bench(settings: BenchSettings, critics: Sequence[ScorerConfig] = CRITICS) -> dict[str, Any]:
    """Measure some iterations after a short one to warm up; return the result as JSON values."""
    iteration = Iteration(settings, critics)
    device = iteration.model.device
    iteration.run(one_step(settings.rollout, 2), PhaseClock(device))
    clocks = [PhaseClock(device) for _ in range(settings.repeats)]
    said = [iteration.run(settings.rollout, clock) for clock in clocks]
    measured = Measured(
        clocks=clocks,
        sampled_latents=said[-1].pop("sampled_latents"),
        learned_latents=said[-1].pop("learned_latents"),
        device_name=device_name() if device.type == "cuda" else "",
        critic_s=[one.pop("critic_s") for one in said],
        critic_flops=iteration.critic_flops,
    )
    shape = iteration.model.latent_shape(settings.num_frames, settings.height, settings.width)
    rollout = settings.rollout
    return {
        "model": {**asdict(settings.size), "weights": "random", "dtype": settings.dtype},
        "parameters": asdict(iteration.counts),
        "lora_rank": LORA.rank,
        "vae_tile": settings.vae_tile,
        "clip": [settings.num_frames, settings.height, settings.width],
        "latents": list(shape),
        "tokens": count_tokens(settings.size, shape),
        "group_size": rollout.group_size,
        "num_denoising_steps": rollout.num_denoising_steps,
        "guidance_scale": rollout.guidance_scale,
        "initial_noise": rollout.initial_noise,
        "repeats": settings.repeats,
        "sampled_latents": measured.sampled_latents,
        "learned_latents": measured.learned_latents,
        **figures(settings, iteration.counts, measured),
        "checks": said[-1],
        "environment": environment(device),
    }


def one_step(rollout: RolloutConfig, num_steps: int) -> RolloutConfig:
    """Return a rollout of which one step is trained, a quarter on: its place is not drawn."""
    place = num_steps // 4
    plan = StepPlanConfig(range_frac=(place / num_steps, (place + 1) / num_steps))
    return rollout.model_copy(update={"num_denoising_steps": num_steps, "step_plan": plan})


def parse(arguments: Sequence[str] | None = None) -> tuple[BenchSettings, argparse.Namespace]:
    """Return the settings and what else was asked for."""
    parser = shape_parser(__doc__, frames=81, repeats=1)
    parser.add_argument("--group", type=int, default=4, help="clips of the group")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--guidance-scale", type=float, default=4.5)
    parser.add_argument("--vae-tile", type=int, help="pixels of a side; whole clips if absent")
    parser.add_argument(
        "--critic", action="append", default=[], help="an entry of rewards.scorers more, as YAML"
    )
    parser.add_argument("--largest", action="store_true", help="search the most layers that train")
    parser.add_argument("--most-layers", type=int, help="of that; 4 times the size's on a CPU")
    given = parser.parse_args(arguments)
    rollout = RolloutConfig(
        shift=3.0,
        group_size=given.group,
        guidance_scale=given.guidance_scale,
        initial_noise=given.initial_noise,
    )
    settings = shape_settings(given, one_step(rollout, given.steps))
    settings = replace(settings, vae_tile=given.vae_tile)
    if given.most_layers is None and torch.device(settings.device).type == "cpu":
        given.most_layers = 4 * settings.size.num_layers
    given.critics = (
        *CRITICS,
        *(ScorerConfig.model_validate(yaml.safe_load(text)) for text in given.critic),
    )
    what = "largest" if given.largest else "iteration"
    given.name = given.name or f"{result_name(settings)}_{what}"
    return settings, given


def main() -> None:
    settings, given = parse()
    if given.largest:
        found = find_largest(settings, given.most_layers)
    else:
        found = run_bench(settings, given.critics)
    text = json.dumps(found, indent=1)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{given.name}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
