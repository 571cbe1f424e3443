"""Settings on a tiny real model: what is exact, what drifts, and that all of it can be undone."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.config.inference import InferenceConfig
from rlvid.flow.guidance import guided_velocity
from rlvid.inference.optimise import OptimisedModel, optimise
from rlvid.models.base import VideoModel
from rlvid.models.wan import PROMPT_EMBEDS
from rlvid.testing import tiny_model

OTHER = "a blue box rolls to the right while the camera pans left"
Applied = Callable[..., OptimisedModel]
Sample = Callable[..., Tensor]

needs_torchao = pytest.mark.skipif(
    find_spec("torchao") is None, reason="needs torchao: pip install --no-deps torchao==0.18.0"
)
EXACT: list[dict[str, Any]] = [
    {},
    {"attention": "native"},
    {"vae": "sliced"},
    {"vae": "tiled"},
    {"guidance_interval": (0.0, 1.0)},
]
DRIFTING: list[Any] = [
    {"step_cache": {"kind": "first_block", "threshold": 0.5}},
    {"step_cache": {"kind": "taylorseer"}},
    {"step_cache": {"kind": "pyramid_attention"}},
    {"guidance_interval": (0.5, 1.0)},
    pytest.param({"quantise": "int8_weight_only"}, marks=needs_torchao),
    pytest.param({"quantise": "int8_dynamic"}, marks=needs_torchao),
    pytest.param({"quantise": "fp8_weight_only"}, marks=needs_torchao),
]


@pytest.mark.parametrize("settings", EXACT)
def test_exact_settings_give_the_same_bits(
    settings: dict[str, Any], model: VideoModel, applied: Applied, sample: Sample
) -> None:
    """A clip of 16 pixels is smaller than a tile, so tiling is exact too."""
    plain = sample(optimise(model, InferenceConfig()))
    videos = model.decode(plain)
    optimised = applied(**settings)
    assert torch.equal(sample(optimised), plain)
    assert torch.equal(optimised.decode(plain), videos)
    optimised.undo()


def test_default_setting_is_plain_guidance(model: VideoModel, applied: Applied) -> None:
    """The rollout worker goes through a clip always: its bits must be those of the function."""
    latents = torch.randn(3, *model.latent_shape(9, 16, 16))
    sigma = torch.full((3,), 0.7)
    with torch.no_grad(), applied().clip() as clip:
        condition, negative = model.encode_prompts(["a red ball"]), model.encode_prompts([""])
        assert torch.equal(
            clip.guided_velocity(latents, sigma, condition, negative, 3.0),
            guided_velocity(model, latents, sigma, condition, negative, 3.0),
        )


@pytest.mark.parametrize("settings", DRIFTING)
def test_drifting_settings_drift_a_little_and_can_be_undone(
    settings: dict[str, Any], model: VideoModel, applied: Applied, sample: Sample
) -> None:
    """An optimisation that changes nothing was not applied; one that changes all is broken."""
    plain = sample(optimise(model, InferenceConfig()))
    optimised = applied(**settings)
    distance = float((sample(optimised) - plain).abs().max())
    assert 0.0 < distance < 0.2  # latents are of order 1
    assert torch.equal(sample(optimised, is_plain=True), plain)
    optimised.undo()
    assert torch.equal(sample(optimise(model, InferenceConfig())), plain)


@pytest.mark.parametrize("settings", DRIFTING)
def test_second_clip_equals_that_of_a_fresh_pipeline(
    settings: dict[str, Any], applied: Applied, sample: Sample
) -> None:
    """State that outlives a clip gives a plausible wrong video."""
    optimised = applied(**settings)
    sample(optimised, prompt=OTHER, seeds=(8, 9))
    second = sample(optimised, seeds=(1, 2))
    fresh = optimise(tiny_model(), InferenceConfig.model_validate(settings))
    assert torch.equal(second, sample(fresh, seeds=(1, 2)))


@pytest.mark.parametrize(
    "cache",
    [
        {"kind": "first_block", "threshold": 1e6},
        {"kind": "taylorseer"},
        {"kind": "pyramid_attention"},
    ],
)
def test_cache_is_dropped_when_the_batch_changes_within_a_clip(
    cache: dict[str, Any], model: VideoModel, applied: Applied
) -> None:
    """`sample_group` grows from one row per noise to one per rollout, and a guidance interval drops
    half the batch; what was cached for other rows must not be added to these."""
    latents = torch.randn(4, *model.latent_shape(9, 16, 16))
    condition, negative = model.encode_prompts(["a red ball"]), model.encode_prompts([""])
    sigma, scale = torch.full((4,), 0.5), 3.0
    with torch.no_grad(), applied(step_cache=cache).clip() as clip:
        for rows, factor in ((1, scale), (1, scale), (4, scale), (4, 1.0), (2, scale)):
            part, at = latents[:rows], sigma[:rows]
            found = clip.guided_velocity(part, at, condition, negative, factor)
            if (rows, factor) != (1, scale):
                plain = _plain_velocity(part, at, condition, negative, factor)
                assert torch.equal(found, plain), (rows, factor)


def _plain_velocity(
    latents: Tensor, sigma: Tensor, condition: Condition, negative: Condition, scale: float
) -> Tensor:
    return guided_velocity(tiny_model(), latents, sigma, condition, negative, scale)


def test_first_block_cache_leaves_out_blocks(model: VideoModel, applied: Applied) -> None:
    """With a threshold above any change only the first step is computed in full."""
    calls: list[int] = []
    transformer: Any = model.transformer
    transformer.blocks[1].ffn.register_forward_hook(lambda *_: calls.append(1))
    optimised = applied(step_cache={"kind": "first_block", "threshold": 1e6})
    latents = torch.randn(1, *model.latent_shape(9, 16, 16))
    condition, negative = model.encode_prompts(["a red ball"]), model.encode_prompts([""])
    with torch.no_grad(), optimised.clip() as clip:
        for sigma in (1.0, 0.8, 0.5):
            clip.guided_velocity(latents, torch.tensor([sigma]), condition, negative, 3.0)
    assert len(calls) == 1


def test_guidance_interval_leaves_out_the_unconditional_half(
    model: VideoModel, applied: Applied
) -> None:
    """Within it guidance is as ever, its ends included; outside it is the conditional velocity."""
    latents = torch.randn(2, *model.latent_shape(9, 16, 16))
    condition, negative = model.encode_prompts(["a red ball"]), model.encode_prompts([""])
    with torch.no_grad(), applied(guidance_interval=(0.25, 0.75)).clip() as clip:
        for sigma, scale in ((0.9, 1.0), (0.75, 3.0), (0.5, 3.0), (0.25, 3.0), (0.1, 1.0)):
            rows = torch.full((2,), sigma)
            assert torch.equal(
                clip.guided_velocity(latents, rows, condition, negative, 3.0),
                guided_velocity(model, latents, rows, condition, negative, scale),
            )


def test_flex_attention_differs_by_rounding_only(applied: Applied, sample: Sample) -> None:
    """Another kernel sums in another order; 1e-5 is some roundings of float32 over 8 steps."""
    plain = sample(optimise(tiny_model(), InferenceConfig()))
    torch.testing.assert_close(sample(applied(attention="flex")), plain, rtol=1e-5, atol=1e-5)


def test_attention_backend_is_of_this_model_alone(model: VideoModel, applied: Applied) -> None:
    """diffusers' setter also changes the process's default, which other models would follow."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    before = _AttentionBackendRegistry.get_active_backend()[0]
    optimised = applied(attention="flex")
    assert _AttentionBackendRegistry.get_active_backend()[0] == before
    optimised.undo()
    transformer: Any = model.transformer
    assert transformer.blocks[0].attn1.processor._attention_backend is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["regional", "full"])
def test_compiled_forward_differs_by_rounding_only(
    kind: str, applied: Applied, sample: Sample
) -> None:
    """Fused arithmetic rounds elsewhere; switched off and on again it is not compiled anew."""
    plain = sample(optimise(tiny_model(), InferenceConfig()))
    optimised = applied(compile=kind)
    compiled = sample(optimised)
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(sample(optimised, is_plain=True), plain)
    assert torch.equal(sample(optimised), compiled)


def test_tiles_blend_where_the_clip_is_larger(model: VideoModel, applied: Applied) -> None:
    latents = torch.randn(1, *model.latent_shape(9, 32, 32))
    whole = model.decode(latents)
    optimised = applied(vae="tiled", vae_tile=16, vae_stride=8)
    tiled = optimised.decode(latents)
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    optimised.undo()
    assert torch.equal(model.decode(latents), whole)


def test_prompt_cache_gives_back_the_bits_in_another_process(
    model: VideoModel, applied: Applied, tmp_path: Path
) -> None:
    folder = str(tmp_path / "prompts")
    expected = model.encode_prompts(["a red ball", ""])[PROMPT_EMBEDS]
    with applied(prompt_cache=folder).clip() as clip:
        assert torch.equal(clip.encode_prompts(["a red ball", ""])[PROMPT_EMBEDS], expected)
    files = sorted(path.name for path in Path(folder).iterdir())
    assert len(files) == 2
    other: Any = tiny_model()
    optimised = optimise(other, InferenceConfig(prompt_cache=folder))
    other.encode_prompt = None  # whatever is read must not be encoded
    with optimised.clip() as clip:
        assert torch.equal(clip.encode_prompts(["a red ball", ""])[PROMPT_EMBEDS], expected)


def test_prompt_cache_keeps_encoders_apart(tmp_path: Path) -> None:
    """A folder outlives the model; another text encoder must not read its embeddings."""
    folder = str(tmp_path)
    for seed in (0, 1):
        model = tiny_model(seed)
        with optimise(model, InferenceConfig(prompt_cache=folder)).clip() as clip:
            found = clip.encode_prompts(["a red ball"])[PROMPT_EMBEDS]
        assert torch.equal(found, model.encode_prompts(["a red ball"])[PROMPT_EMBEDS])
    assert len(list(tmp_path.iterdir())) == 2


def test_damaged_prompt_file_is_named(applied: Applied, tmp_path: Path) -> None:
    with applied(prompt_cache=str(tmp_path)).clip() as clip:
        clip.encode_prompts(["a red ball"])
    [path] = tmp_path.iterdir()
    path.write_bytes(b"rubbish")
    with (
        applied(prompt_cache=str(tmp_path)).clip() as clip,
        pytest.raises(ValueError, match=rf"{path.name} is damaged .*delete it"),
    ):
        clip.encode_prompts(["a red ball"])
