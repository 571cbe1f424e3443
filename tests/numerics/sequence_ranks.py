"""Run as ranks of one clip by test_sequence_parallel: FOLDER FAMILY/KIND... Not a test itself.

Each rank first computes alone, then with the others, and notes how far the two are apart.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from rlvid.condition import Condition
from rlvid.config import LoraConfig
from rlvid.flow.sampler import sample_ode
from rlvid.models.lora import add_lora
from rlvid.models.pipeline_model import set_attention_backend
from rlvid.models.sequence_parallel import open_sequence_group, spread_tokens
from tests.unit.models import family_checks
from tests.unit.models.family_checks import FOLDERS

CLIPS = {
    "cogvideox": (9, 16, 32),
    "cogvideox_i2v": (9, 32, 32),
    "cosmos": (9, 16, 32),
    "cosmos_first_frame": (9, 32, 32),
    "hunyuan_video": (9, 16, 16),
    "hunyuan_video15": (9, 32, 32),
    "hunyuan_video15_i2v": (9, 32, 32),
    "ltx": (9, 32, 64),
    "ltx2": (9, 32, 64),
    "ltx2_interleaved": (9, 32, 64),
    "mochi": (13, 16, 32),
    "sd3": (1, 16, 32),
    "wan": (9, 32, 32),
    "wan_experts": (9, 32, 32),
    "wan_i2v": (9, 32, 32),
    "wan_ti2v": (9, 32, 32),
    "wan_vace": (9, 32, 32),
}
"""Folder of `family_checks` to a clip whose tokens divide."""
TEXTS = ["a red ball falls", "a blue square"]
SIGMA = torch.tensor([0.9, 0.3])
"""On both sides of the experts' boundary."""

THREE_HEADS = {"num_attention_heads": 3}

Found = dict[str, Tensor]


def build(family: str) -> Any:
    return family_checks.build(FOLDERS[family])


def told(family: str, model: Any) -> tuple[Tensor, Condition]:
    """Return two latents and what they are told: a text each, and a picture where there is one."""
    size = CLIPS[family]
    latents = torch.randn(2, *model.latent_shape(*size), generator=torch.Generator().manual_seed(7))
    condition = model.encode_prompts(TEXTS)
    if hasattr(model, "encode_media"):
        condition |= model.encode_media(family_checks.media(model, size, rows=2), size[0])
    return latents, condition


def computed(family: str, model: Any) -> Found:
    """Return velocity, an ODE's end, and the gradients of a loss through two forwards."""
    latents, condition = told(family, model)
    start = latents.clone().requires_grad_()
    velocity = model.velocity(start, SIGMA, condition)
    middle = start - 0.3 * velocity
    weight = torch.arange(velocity.numel()).reshape(velocity.shape).sin()
    (weight * model.velocity(middle, SIGMA - 0.2, condition)).sum().backward()
    end = sample_ode(lambda x, sigma: model.velocity(x, sigma, condition), latents, (1.0, 0.6, 0.0))
    gradients = {
        name: parameter.grad
        for name, parameter in model.transformer.named_parameters()
        if parameter.grad is not None
    }
    return {"velocity": velocity.detach(), "ode": end, "latents": start.grad, **gradients}


def adapter(family: str) -> Any:
    """LoRA, its second factor not 0, and blocks that run again in the backward."""
    model = build(family)
    add_lora(model.transformer, LoraConfig(rank=2, alpha=4.0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.transformer.named_parameters():
            if "lora_B" in name:
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    model.transformer.enable_gradient_checkpointing()
    return model


KINDS: Mapping[str, Callable[[str], Any]] = {"full": build, "lora": adapter}


def distances(found: Found, expected: Found) -> dict[str, float]:
    """Return how far results are off, of the largest element of their kind."""
    outputs = ("velocity", "ode", "latents")
    largest = max(float(v.abs().max()) for n, v in expected.items() if n not in outputs)
    off = {
        name: float((found[name] - expected[name]).abs().max() / expected[name].abs().max())
        for name in outputs
    }
    names = [name for name in expected if name not in outputs]
    off["gradient"] = max(
        float((found[name] - expected[name]).abs().max()) / largest for name in names
    )
    return off


def compared(case: str, group: Any) -> dict[str, float]:
    family, _, kind = case.partition("/")
    make = KINDS[kind]
    expected = computed(family, make(family))
    model = make(family)
    spread_tokens(model.transformer, group)
    found = computed(family, model)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if name not in ("velocity", "ode", "latents"):
            dist.all_reduce(value, group=group)
    return distances(found, expected)


def kept_bytes(model: Any) -> int:
    """Return the bytes that a Wan's forward keeps for its backward, parameters aside."""
    latents, condition = told("wan", model)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        velocity = model.velocity(latents, SIGMA, condition)
    for parameter in model.transformer.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    assert velocity.requires_grad
    return sum(kept.values())


def kept_frac(group: Any) -> float:
    """Return what one rank keeps with the others, of what it keeps alone."""
    alone, shared = build("wan"), build("wan")
    spread_tokens(shared.transformer, group)
    return kept_bytes(shared) / kept_bytes(alone)


def refusals(group: Any) -> dict[str, str]:
    """Return what is said of a clip, heads, a class and a kernel that cannot be spread."""
    odd, kernel = build("wan"), build("wan")
    spread_tokens(odd.transformer, group)
    few = torch.randn(1, *odd.latent_shape(9, 8, 8))
    three_heads = type(odd.transformer).from_config({**odd.transformer.config, **THREE_HEADS})
    set_attention_backend(kernel.transformer, "flex")
    spread_tokens(kernel.transformer, group)
    latents, condition = told("wan", kernel)
    trials: dict[str, Callable[[], Any]] = {
        "tokens": lambda: odd.velocity(few, SIGMA[:1], odd.encode_prompts(TEXTS[:1])),
        "heads": lambda: spread_tokens(three_heads, group),
        "class": lambda: spread_tokens(torch.nn.Linear(1, 1), group),
        "kernel": lambda: kernel.velocity(latents, SIGMA, condition),
    }
    said = {}
    for name, trial in trials.items():
        try:
            with torch.no_grad():
                trial()
        except (ValueError, RuntimeError) as error:
            said[name] = str(error)
    return said


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks = open_sequence_group(dist.get_world_size(), timeout_s=60.0)
    result = {case: compared(case, ranks) for case in sys.argv[2:]}
    said = refusals(ranks)
    kept = kept_frac(ranks)
    if dist.get_rank() == 0:
        (Path(sys.argv[1]) / "distances.json").write_text(json.dumps(result, indent=1))
        (Path(sys.argv[1]) / "refusals.json").write_text(json.dumps(said, indent=1))
        (Path(sys.argv[1]) / "kept.json").write_text(json.dumps(kept))
    dist.barrier()
    # Interpreter exit sometimes aborts in gloo's threads ("terminate called without ...").
    os._exit(0)
