"""What cannot run here is an error that says what is missing, and the model stays as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn

from rlvid.config.inference import InferenceConfig, StepCacheConfig
from rlvid.inference.attention import BACKENDS, check_backend
from rlvid.inference.compile import CompileSwitch
from rlvid.inference.optimise import OptimisedModel, optimise
from rlvid.inference.quantise import QuantiseSwitch
from rlvid.inference.step_cache import StepCache
from rlvid.models.base import VideoModel

Applied = Callable[..., OptimisedModel]
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["flash", "flash-3", "xformers", "sage"])
def test_gpu_kernel_on_a_cpu_names_all_it_needs(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is not available here: .*a CUDA device") as got:
        check_backend(name, CPU, torch.float32)
    if BACKENDS[name].dtypes:
        assert "model.dtype bfloat16, got float32" in str(got.value)


@pytest.mark.parametrize(
    ("name", "capability", "expected"),
    [
        ("flash", (7, 5), "compute capability at least 8.0, got 7.5"),
        ("flash-3", (10, 0), "compute capability exactly generation 9.0, got 10.0"),
        ("flash-3", (9, 0), None),
        ("sage", (8, 9), None),
    ],
)
def test_kernel_of_another_generation_is_refused(
    name: str, capability: tuple[int, int], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr("rlvid.inference.attention.find_spec", lambda _: object())
    cuda = torch.device("cuda")
    if expected is None:
        check_backend(name, cuda, torch.bfloat16)
        return
    with pytest.raises(ValueError, match=re.escape(expected)):
        check_backend(name, cuda, torch.bfloat16)


def test_every_name_of_the_config_has_a_kernel_of_the_dispatcher() -> None:
    from typing import get_args

    from diffusers.models.attention_dispatch import AttentionBackendName

    from rlvid.config.inference import AttentionName

    assert set(get_args(AttentionName)) == set(BACKENDS)
    known = {one.value for one in AttentionBackendName}
    assert {backend.dispatcher for backend in BACKENDS.values()} <= known


def test_missing_torchao_says_what_to_install(
    applied: Applied, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlvid.inference.quantise.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"int8_dynamic needs .*pip install .*torchao==0.18.0"):
        applied(quantise="int8_dynamic")


def test_fp8_arithmetic_on_a_cpu_is_refused(
    applied: Applied, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlvid.inference.quantise.find_spec", lambda _: object())
    with pytest.raises(ValueError, match=r"fp8_dynamic needs a CUDA device .* got cpu"):
        applied(quantise="fp8_dynamic")


def test_model_without_linear_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlvid.inference.quantise.find_spec", lambda _: object())
    with pytest.raises(ValueError, match="Linear has no linear layers in `blocks`"):
        QuantiseSwitch(nn.Linear(2, 2), "int8_weight_only").on()


def test_transformer_that_diffusers_cannot_cache_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no enable_cache: expected a diffusers"):
        StepCache(nn.Linear(2, 2), StepCacheConfig(kind="first_block")).on()


def test_first_block_cache_of_one_block_is_refused(model: VideoModel) -> None:
    """There would be no block left to leave out."""
    transformer: Any = model.transformer
    transformer.blocks = transformer.blocks[:1]
    with pytest.raises(ValueError, match="first_block does not go with WanTransformer3DModel"):
        StepCache(transformer, StepCacheConfig(kind="first_block")).on()


def test_regional_compilation_needs_repeated_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlvid.inference.compile.check_compiler", lambda _: None)
    with pytest.raises(ValueError, match="Linear names no repeated blocks"):
        CompileSwitch(nn.Linear(2, 2), "regional").on()


def test_machine_without_a_compiler_is_told(
    applied: Applied, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> object:
        raise RuntimeError("no g++")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ValueError, match="torch.compile does not work on cpu here: no g"):
        applied(compile="regional")


def test_vae_of_another_kind_is_refused(model: VideoModel) -> None:
    class NoVae:
        transformer, device, encode_prompts = model.transformer, CPU, model.encode_prompts

    with pytest.raises(ValueError, match="NoVae has no diffusers VAE"):
        optimise(cast(VideoModel, NoVae()), InferenceConfig(vae="tiled"))


def test_failing_setting_leaves_nothing_on(model: VideoModel, applied: Applied) -> None:
    """The cache comes before the VAE; it must be off again when that fails."""
    transformer: Any = model.transformer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "vae", None)
        with pytest.raises(ValueError, match="has no diffusers VAE"):
            applied(step_cache={"kind": "first_block"}, vae="tiled")
    assert not transformer.is_cache_enabled


def test_cached_step_with_gradient_is_refused(model: VideoModel, applied: Applied) -> None:
    latents = torch.randn(1, *model.latent_shape(9, 16, 16))
    condition = model.encode_prompts(["a red ball"])
    with (
        applied(step_cache={"kind": "first_block"}).clip() as clip,
        pytest.raises(RuntimeError, match=r"expected sampling under torch.no_grad"),
    ):
        clip.guided_velocity(latents, torch.ones(1), condition, None, 1.0)


def test_rows_at_several_sigmas_are_refused(model: VideoModel, applied: Applied) -> None:
    latents = torch.randn(2, *model.latent_shape(9, 16, 16))
    condition = model.encode_prompts(["a red ball"])
    with (
        torch.no_grad(),
        applied(guidance_interval=(0.2, 0.8)).clip() as clip,
        pytest.raises(ValueError, match=r"every row at one sigma.* got 0.5 to 0.9"),
    ):
        clip.guided_velocity(latents, torch.tensor([0.5, 0.9]), condition, None, 1.0)


def test_two_clips_at_once_are_refused(applied: Applied) -> None:
    optimised = applied()
    with (
        optimised.clip(),
        pytest.raises(RuntimeError, match="expected one at a time"),
        optimised.clip(),
    ):
        pass
