"""Bytes alive at once in a Wan forward, its backward and a decode, counted against the planner's.

    python -m tests.bench.activation_bytes

Everything runs on torch's fake tensors: the operations of a CPU forward at real size, without its
memory or its time, so the count (`rlvid.models.live_bytes`) is exact and the same on every machine.
The constants of `rlvid.launch.activations` and `rlvid.observability.vae_flops` are read off such
counts at several depths and widths of the MLP. Gradients of parameters are dropped as they appear;
they have a line of their own in the plan.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rlvid.config import LearnerConfig, LoraConfig, ModelConfig, Recipe
from rlvid.launch.activations import activation_bytes, denoising_bytes
from rlvid.launch.model_size import read_model_size
from rlvid.launch.model_tiles import one_tile, tiles_bytes
from rlvid.learners.zero_linear import let_go_of_weights
from rlvid.models.live_bytes import LiveBytes
from rlvid.models.lora import add_lora
from rlvid.observability.vae_flops import VaeSize, decode_bytes
from rlvid.vae_tiles import tile_vae
from tests.bench.wan_flops import WAN_1_3B, WanSize, count_tokens
from tests.bench.wan_model import DTYPES, build_transformer

RESULTS = Path(__file__).parent / "results" / "activation_bytes.json"
CLIP = (21, 60, 104)
"""Latent frames, height and width of 81 frames of 480x832."""
WAN_VAE = {
    "base_dim": 96,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "z_dim": 16,
}
"""Of Wan 2.1, as its folder says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One forward, and its backward but for "denoise"."""

    size: WanSize
    dtype: Literal["float32", "bfloat16"]
    mode: Literal["denoise", "lora", "full"]
    checkpoints: bool = False
    rows: int = 1
    latent: tuple[int, int, int] = CLIP
    lora_rank: int = 16
    zero_stage: Literal[2, 3] = 2


def count(case: Case) -> int:
    """Return the most bytes that are alive at once beside parameters, inputs and gradients."""
    size, dtype = case.size, DTYPES[case.dtype]
    transformer: Any = build_transformer(size, torch.device("meta"), dtype)
    transformer.requires_grad_(case.mode == "full")
    if case.mode == "lora":
        add_lora(transformer, LoraConfig(rank=case.lora_rank))
    if case.checkpoints:
        transformer.enable_gradient_checkpointing()
    if case.zero_stage == 3:
        let_go_of_weights(transformer)
    learns = case.mode != "denoise"
    transformer.train(learns)
    with FakeTensorMode(), torch.set_grad_enabled(learns):
        _fill(transformer)
        for parameter in transformer.parameters():
            if parameter.requires_grad and learns:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        latents = torch.empty(case.rows, size.channels, *case.latent, dtype=dtype)
        text = torch.empty(case.rows, size.text_tokens, size.text_dim, dtype=dtype)
        timestep = torch.empty(case.rows)
        there = [latents, text, timestep, *transformer.parameters(), *transformer.buffers()]
        with LiveBytes(there) as alive:
            velocity = transformer(
                hidden_states=latents,
                timestep=timestep,
                encoder_hidden_states=text,
                return_dict=False,
            )[0]
            if learns:
                velocity.float().sum().backward()
    return int(alive.peak)


def count_decode(config: dict[str, Any], latent: tuple[int, int, int], tile: int | None) -> int:
    """Return the most bytes that are alive at once beside weights while a clip is decoded."""
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        vae = AutoencoderKLWan.from_config(config).eval().requires_grad_(False)
    if tile is not None:
        tile_vae(vae, tile, tile * 3 // 4, where="tile")
    with FakeTensorMode(), torch.no_grad():
        _fill(vae)
        latents = torch.empty(1, config["z_dim"], *latent)
        with LiveBytes([latents, *vae.parameters(), *vae.buffers()]) as alive:
            vae.decode(latents, return_dict=False)
    return int(alive.peak)


def predicted(case: Case) -> float:
    """Return the bytes that the planner's formulas give."""
    size = replace(
        read_model_size(ModelConfig(), LearnerConfig()),
        width=case.size.width,
        inner_width=case.size.ffn_dim,
        num_layers=case.size.num_layers,
        tokens=count_tokens(case.size, (case.size.channels, *case.latent)),
        text_tokens=case.size.text_tokens,
    )
    recipe = Recipe.model_validate({"name": "r", "model": {"dtype": case.dtype}})
    if case.mode == "denoise":
        return denoising_bytes(recipe, size, case.rows)
    learner = LearnerConfig(
        mode=case.mode,
        activation_checkpointing=case.checkpoints,
        zero_stage=case.zero_stage,
    )
    return activation_bytes(recipe, size, learner, case.rows)


def cases() -> Iterator[Case]:
    """Yield four layers of Wan 1.3B with its own MLP and one of 4 d, in every way of use."""
    for ffn_dim in (4 * WAN_1_3B.width, WAN_1_3B.ffn_dim):
        size = replace(WAN_1_3B, num_layers=4, ffn_dim=ffn_dim)
        for dtype in ("float32", "bfloat16"):
            yield Case(size=size, dtype=dtype, mode="denoise")
            for mode in ("lora", "full"):
                for checkpoints in (False, True):
                    case = Case(size=size, dtype=dtype, mode=mode, checkpoints=checkpoints)
                    yield case
                    if mode == "lora":
                        yield replace(case, zero_stage=3)


def decode_case(latent: tuple[int, int, int] = CLIP, tile: int | None = None) -> tuple[int, float]:
    """Return the count and the formula's bytes of decoding a clip of Wan 2.1.

    Args:
        tile: pixels of its side; None decodes whole clips.
    """
    size = VaeSize.of_config({"_class_name": "AutoencoderKLWan", **WAN_VAE})
    assert size is not None
    counted = count_decode(WAN_VAE, latent, tile)
    frames, height, width = latent
    clip = ModelConfig(num_frames=4 * frames - 3, height=8 * height, width=8 * width, vae_tile=tile)
    part, _ = one_tile(clip)
    formula = decode_bytes(size, (frames, part.height // 8, part.width // 8))
    return counted, formula + tiles_bytes(clip)


def _fill(module: nn.Module) -> None:
    """Give every parameter and buffer a fake tensor of its shape and dtype."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype)
            filled = nn.Parameter(fake, requires_grad=parameter.requires_grad)
            part.register_parameter(name, filled)
        for name, buffer in part.named_buffers(recurse=False):
            part.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def decode_row(tile: int | None) -> dict[str, Any]:
    """Return count and formula of a whole clip's decoding."""
    counted, planned = decode_case(tile=tile)
    return {
        "tile": tile,
        "counted_mib": round(counted / 2**20, 1),
        "planned_mib": round(planned / 2**20, 1),
        "error_frac": round(planned / counted - 1.0, 3),
    }


def main() -> None:
    rows: list[dict[str, Any]] = []
    for case in cases():
        counted, planned = count(case), predicted(case)
        rows.append(
            {
                "use": case.mode + " checkpointed" * case.checkpoints,
                "zero_stage": case.zero_stage,
                "dtype": case.dtype,
                "ffn_dim": case.size.ffn_dim,
                "counted_mib": round(counted / 2**20, 1),
                "planned_mib": round(planned / 2**20, 1),
                "error_frac": round(planned / counted - 1.0, 3),
            }
        )
    found = {
        "what": "4 layers of the shape of Wan2.1-T2V-1.3B, one row of 81 frames of 480x832",
        "torch": torch.__version__,
        "cases": rows,
        "decode": [decode_row(None), decode_row(256)],
    }
    text = json.dumps(found, indent=1)
    RESULTS.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
