"""A transformer of Wan's real width on a GPU: kernels, caches and quantised layers by name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.config.inference import InferenceConfig
from rlvid.flow.sampler import sample_ode
from rlvid.flow.sigmas import shifted_sigmas
from rlvid.inference.attention import BACKENDS, check_backend
from rlvid.inference.optimise import OptimisedModel, optimise
from tests.bench.timing import environment, measure
from tests.bench.wan_flops import WAN_1_3B
from tests.bench.wan_model import BenchSettings, ShapeModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="needs a CUDA device: torch.cuda.is_available() is False",
    ),
]
CUDA = torch.device("cuda")
STEPS = 10
SETTINGS: dict[str, dict[str, Any]] = {
    "first_block": {"step_cache": {"kind": "first_block", "threshold": 0.1}},
    "taylorseer": {"step_cache": {"kind": "taylorseer"}},
    "pyramid_attention": {"step_cache": {"kind": "pyramid_attention"}},
    "guidance_interval": {"guidance_interval": (0.3, 1.0)},
    "int8_weight_only": {"quantise": "int8_weight_only"},
    "int8_dynamic": {"quantise": "int8_dynamic"},
    "fp8_weight_only": {"quantise": "fp8_weight_only"},
    "fp8_dynamic": {"quantise": "fp8_dynamic"},
    "compile": {"compile": "regional"},
}


@pytest.fixture(scope="module")
def model() -> ShapeModel:
    """Four layers of the real width at 33 frames of 480x832: 14040 tokens."""
    return ShapeModel(
        BenchSettings(
            size=replace(WAN_1_3B, num_layers=4),
            num_frames=33,
            height=480,
            width=832,
            dtype="bfloat16",
            device="cuda",
        )
    )


def _sample(optimised: OptimisedModel) -> Tensor:
    shape = optimised.model.latent_shape(33, 480, 832)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(CUDA)
    with torch.no_grad(), optimised.clip() as clip:
        condition, negative = clip.encode_prompts(["bench"]), clip.encode_prompts([""])
        return sample_ode(
            lambda latents, sigma: clip.guided_velocity(latents, sigma, condition, negative, 3.0),
            noise,
            shifted_sigmas(STEPS, 3.0),
        )


def _seconds(function: Callable[[], object]) -> float:
    return measure(function, CUDA, repeats=3).median_s


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_attention_kernel_agrees_with_the_native_one(
    name: str, model: ShapeModel, record_property: Callable[[str, object], None]
) -> None:
    """Velocities of bfloat16 kernels differ by roundings; 8-bit queries and keys by some more."""
    try:
        check_backend(name, CUDA, torch.bfloat16)
    except ValueError as missing:
        pytest.skip(str(missing))
    if name == "flex":
        pytest.skip("uncompiled it holds 14040 x 14040 scores of every head: 2 x 12 x 0.8 GB")
    latents = torch.randn(1, *model.latent_shape(33, 480, 832), device=CUDA)
    condition, sigma = model.encode_prompts(["bench"]), torch.full((1,), 0.7, device=CUDA)

    def forward() -> Tensor:
        with torch.no_grad():
            return model.velocity(latents, sigma, condition)

    plain, plain_s = forward(), _seconds(forward)
    optimised = optimise(model, InferenceConfig.model_validate({"attention": name}))
    try:
        found, seconds = forward(), _seconds(forward)
    finally:
        optimised.undo()
    error = _relative_error(found, plain)
    record_property("forward_s", seconds)
    print(json.dumps({"attention": name, "s": seconds, "native_s": plain_s, "error": error}))
    assert error < (0.1 if name == "sage" else 0.02)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_setting_runs_and_stays_near_the_plain_clip(name: str, model: ShapeModel) -> None:
    """Random weights say little of a trained model's distance; NaN or noise would still show."""
    settings = SETTINGS[name]
    if "quantise" in settings and find_spec("torchao") is None:
        pytest.skip("needs torchao: pip install --no-deps torchao==0.18.0")
    if name == "fp8_dynamic" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs compute capability 8.9")
    plain_model = optimise(model, InferenceConfig())
    plain, plain_s = _sample(plain_model), _seconds(lambda: _sample(plain_model))
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    optimised = optimise(model, InferenceConfig.model_validate(settings))
    try:
        found = _sample(optimised)
        first_s, seconds = time.perf_counter() - began, _seconds(lambda: _sample(optimised))
        again = _sample(optimised)
    finally:
        optimised.undo()
    error = _relative_error(found, plain)
    result = {
        "setting": name,
        "s": seconds,
        "plain_s": plain_s,
        "first_s": first_s,
        "error": error,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "environment": environment(CUDA),
    }
    print(json.dumps(result))
    assert bool(found.isfinite().all())
    assert error < 0.5
    torch.testing.assert_close(again, found, rtol=0.02, atol=0.02)  # no state of the clip before
    assert torch.equal(_sample(plain_model), plain)
