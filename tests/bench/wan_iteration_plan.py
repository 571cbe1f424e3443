"""What `rlvid plan` would say of the iteration that `wan_iteration` measures: seconds and peaks.

The planner's own functions, of a recipe and of sizes that are made here instead of read from a
pipeline's folder, as there is none of random weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlvid.config import LearnerConfig, LoraConfig, ModelConfig, Recipe
from rlvid.config.rewards import ScorerConfig
from rlvid.launch.estimate.assumptions import Assumptions
from rlvid.launch.estimate.records import Counted
from rlvid.launch.estimate.training import grpo_work
from rlvid.launch.memory import actor_memory, decoder_memory, learner_memory
from rlvid.launch.model_size import ClipFlops, ModelSize
from rlvid.launch.model_tiles import one_tile, tiles_bytes
from rlvid.models.published import PUBLISHED
from rlvid.observability.mfu import PEAK_BF16
from rlvid.observability.vae_flops import VaeSize, decode_bytes, decode_flops
from tests.bench.wan_flops import TINY, count_tokens, latent_shape
from tests.bench.wan_model import FPS, BenchSettings, flops_of_row

LORA = LoraConfig(rank=16)
CRITICS = (
    ScorerConfig(use="motion_amount"),
    ScorerConfig(use="physics", config={"fps": FPS}),
    ScorerConfig(use="realism"),
)
WAN_VAE = PUBLISHED["Wan2.1-T2V-1.3B-Diffusers"].vae
TINY_VAE = {**WAN_VAE, "base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
WORK_OF = {"denoise": "actors", "decode": "decoder", "train": "learner"}
"""What the planner calls the work of a role."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Parameters, of modules that were built."""

    transformer: int
    trained: int
    vae: int


def iteration_recipe(settings: BenchSettings) -> Recipe:
    """Return a recipe whose step is one group, learned from as the benchmark does."""
    learner = LearnerConfig(lora=LORA, zero_stage=0, activation_checkpointing=True)
    return Recipe.model_validate(
        {
            "name": "wan_iteration",
            "phases": ["grpo"],
            "grpo": {"num_steps": 1},
            "model": settings.clip,
            "rollout": settings.rollout.model_copy(update={"groups_per_step": 1}),
            "rewards": {"scorers": CRITICS},
            "learner": learner,
        }
    )


def vae_config(settings: BenchSettings) -> Mapping[str, Any]:
    """Return Wan 2.1's, or a narrow one for the tiny size."""
    return TINY_VAE if settings.size.name == TINY.name else WAN_VAE


def clip_decode_flops(settings: BenchSettings) -> int:
    """Return the FLOPs of decoding one clip, overlaps of tiles included."""
    part, times = one_tile(settings.clip)
    return round(times * decode_flops(_vae_size(settings), (_frames(settings), *_area(part))))


def model_size(settings: BenchSettings, counts: Counts) -> ModelSize:
    """Return what the planner would read of a pipeline's folder, which has no text encoder."""
    size, clip = settings.size, settings.clip
    part, _ = one_tile(clip)
    alive = decode_bytes(_vae_size(settings), (_frames(settings), *_area(part)))
    return ModelSize(
        transformer_parameters=counts.transformer,
        text_encoder_parameters=0,
        vae_parameters=counts.vae,
        trainable_parameters=counts.trained,
        width=size.width,
        num_layers=size.num_layers,
        tokens=count_tokens(size, _shape(settings)),
        latent_numbers=math.prod(_shape(settings)),
        clip_numbers=3 * clip.num_frames * clip.height * clip.width,
        inner_width=size.ffn_dim,
        text_tokens=size.text_tokens,
        decode_bytes=alive + tiles_bytes(clip),
    )


def planned_seconds(settings: BenchSettings, gpu: str) -> dict[str, float] | None:
    """Return the seconds of each role at the utilisations that the planner assumes.

    None where the device's peak is not in rlvid's table, a CPU's above all.

    Args:
        gpu: as torch names it.
    """
    if gpu not in PEAK_BF16:
        return None
    assumed, clip = Assumptions(gpu=gpu), settings.clip
    flops = ClipFlops(text=0, decode=clip_decode_flops(settings), model=clip)
    counted = Counted(row=flops_of_row(settings), clip=flops, assumed=assumed)
    return {
        WORK_OF[work.what]: (work.flops or 0.0) / (assumed.peak * work.mfu)
        for work in grpo_work(iteration_recipe(settings), counted)
    }


def planned_peaks_gib(settings: BenchSettings, counts: Counts) -> dict[str, float]:
    """Return the peak of the device in the phases of each role, all roles in one process.

    Weights of transformer and VAE, the adapter and Adam's moments lie there all the time.
    """
    recipe, size = iteration_recipe(settings), model_size(settings, counts)
    actor, decoder = actor_memory(recipe, size), decoder_memory(recipe, size)
    learner = learner_memory(recipe, size)
    resident = learner["weights"] + learner["optimiser"] + decoder["weights"]
    return {
        "actors": (resident + actor["activations"]) / 1024,
        "decoder": (resident + decoder["decoding"] + decoder["clips"]) / 1024,
        "learner": (resident + learner["gradients"] + learner["activations"]) / 1024,
    }


def _shape(settings: BenchSettings) -> tuple[int, int, int, int]:
    clip = settings.clip
    return latent_shape(
        settings.size, num_frames=clip.num_frames, height=clip.height, width=clip.width
    )


def _frames(settings: BenchSettings) -> int:
    return _shape(settings)[1]


def _area(clip: ModelConfig) -> tuple[int, int]:
    return clip.height // 8, clip.width // 8


def _vae_size(settings: BenchSettings) -> VaeSize:
    size = VaeSize.of_config(vae_config(settings))
    assert size is not None, "of the kind whose formula this is"
    return size
