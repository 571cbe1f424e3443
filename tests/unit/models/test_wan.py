"""The Wan adapter, on a tiny random pipeline of diffusers' own classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from diffusers.models import attention_dispatch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.config import ModelConfig
from rlvid.models import digest_folder, load_decoder, load_model, video_vae
from rlvid.models.wan import PROMPT_EMBEDS, WanModel
from rlvid.testing import check_model, tiny_model
from tests.unit.models.family_checks import FAMILIES, build
from tests.unit.models.family_pipelines import from_pipeline, sampled

CPU = torch.device("cpu")
CAPTION = "a red ball falls to the left while the camera stays still"


@pytest.fixture(scope="module")
def model() -> WanModel:
    model = tiny_model()
    assert isinstance(model, WanModel)
    return model


@pytest.fixture(scope="module")
def folder(model: WanModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    model.save(str(folder))
    return folder


def batch(model: WanModel, rows: int = 3) -> tuple[Tensor, Tensor, Condition]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(rows, *model.latent_shape(9, 16, 16), generator=generator)
    sigma = torch.linspace(0.9, 0.2, rows)
    return latents, sigma, model.encode_prompts([CAPTION] * rows)


def test_adapter_keeps_the_protocol(model: WanModel) -> None:
    """The same check that plugin authors run, on the reference adapter."""
    check_model(model)


def test_velocity_is_bit_identical_with_and_without_gradient(model: WanModel) -> None:
    """Sampling has no gradient and learning has one; the on-policy ratio must be exactly 1."""
    latents, sigma, condition = batch(model, rows=5)
    with torch.inference_mode():
        sampled = model.velocity(latents, sigma, condition)
    learned = model.velocity(latents, sigma, condition)
    assert learned.requires_grad
    assert torch.equal(sampled, learned.detach())


def test_saved_pipeline_loads_with_bit_identical_velocity(model: WanModel, folder: Path) -> None:
    """A checkpoint that rounds or drops a tensor would change the policy at resume."""
    loaded = WanModel.load(folder, device=CPU)
    with torch.no_grad():
        assert torch.equal(loaded.velocity(*batch(loaded)), model.velocity(*batch(model)))


def test_decoder_alone_gives_the_same_pixels_and_reads_nothing_else(
    model: WanModel, folder: Path, tmp_path: Path
) -> None:
    """A reward process that loaded the transformer would need the memory of a rollout actor."""
    copy = tmp_path / "pipeline"
    shutil.copytree(folder, copy)
    for part in ("transformer", "text_encoder"):
        for weights in (copy / part).glob("*.safetensors"):
            weights.unlink()
    decode = load_decoder(ModelConfig(path=str(copy), device="cpu"))
    latents, _, _ = batch(model)
    assert torch.equal(decode(latents), model.decode(latents))


def test_large_clips_go_through_the_vae_one_at_a_time(
    model: WanModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group of them would need a group's memory."""
    latents, _, _ = batch(model)
    together = model.decode(latents)
    sizes = []
    vae = model._vae.module
    for name in ("decode", "encode"):
        whole = getattr(vae, name)

        def noting(clips: Tensor, whole: Any = whole, **options: Any) -> Any:
            sizes.append(len(clips))
            return whole(clips, **options)

        monkeypatch.setattr(vae, name, noting)
    monkeypatch.setattr(video_vae, "PIXELS_AT_ONCE", 9 * 16 * 16)
    alone = model.decode(latents)
    torch.testing.assert_close(alone, together, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(model.encode(alone), model.encode(together), rtol=0.0, atol=1e-3)
    assert sizes == [1] * 9


def test_decoder_that_does_not_load_is_named(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pipeline"
    shutil.copytree(folder, copy)
    for weights in (copy / "vae").glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ValueError, match=r"model.path: .*vae does not load as an AutoencoderKLWan"):
        load_decoder(ModelConfig(path=str(copy), device="cpu"))


def test_wan_pipeline_samples_what_the_adapter_samples(model: WanModel, folder: Path) -> None:
    """Timestep scale, prompt padding and latent scale agree with diffusers' own pipeline."""
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    latents, _, _ = batch(model, rows=1)
    expected = pipeline(
        CAPTION,
        height=16,
        width=16,
        num_frames=9,
        num_inference_steps=3,
        guidance_scale=2.0,
        latents=latents,
        max_sequence_length=model.max_sequence_length,
        output_type="pt",
    ).frames
    sigmas = pipeline.scheduler.sigmas.tolist()
    condition, empty = model.encode_prompts([CAPTION]), model.encode_prompts([""])
    for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
        with torch.no_grad():
            conditional = model.velocity(latents, torch.tensor([sigma]), condition)
            unconditional = model.velocity(latents, torch.tensor([sigma]), empty)
        velocity = unconditional + 2.0 * (conditional - unconditional)
        latents = latents + velocity * (sigma_next - sigma)
    torch.testing.assert_close(model.decode(latents), expected, atol=1e-5, rtol=0.0)


def test_latents_are_normalised_by_the_statistics_of_the_vae(model: WanModel) -> None:
    """Unit noise must meet latents of unit scale; a round trip hides a wrong sense."""
    model = WanModel(_pipeline_with_statistics(mean=3.0, std=2.0), device=CPU)
    plain = WanModel(_pipeline_with_statistics(mean=0.0, std=1.0), device=CPU)
    videos = torch.rand(1, 9, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = model.encode(videos)
    torch.testing.assert_close(latents, (plain.encode(videos) - 3.0) / 2.0)
    torch.testing.assert_close(model.decode(latents), plain.decode(plain.encode(videos)))


def test_vae_shapes_follow_latent_shape(model: WanModel) -> None:
    """Sampler and learner allocate by `latent_shape`; the VAE decides what is true."""
    for num_frames, height, width in ((1, 16, 16), (9, 16, 32), (17, 32, 16)):
        videos = torch.rand(2, num_frames, 3, height, width)
        latents = model.encode(videos)
        assert latents.shape[1:] == model.latent_shape(num_frames, height, width)
        assert model.decode(latents).shape == videos.shape


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((16, 16, 16), "model.num_frames: expected a multiple of 4 plus 1, got 16"),
        ((9, 20, 16), "model.height: expected a multiple of 8, got 20"),
        ((9, 16, 0), "model.width: expected a multiple of 8, got 0"),
    ],
)
def test_clip_size_that_does_not_divide_is_refused(
    model: WanModel, size: tuple[int, int, int], message: str
) -> None:
    """The VAE itself would cut such a clip short without a word."""
    with pytest.raises(ValueError, match=message):
        model.latent_shape(*size)


def test_embedding_does_not_depend_on_its_batch_or_on_the_cache(model: WanModel) -> None:
    """An actor and a learner encode different sets of prompts and must condition alike."""
    fresh = tiny_model()
    together = model.encode_prompts(["a blue box", CAPTION, ""])[PROMPT_EMBEDS]
    assert torch.equal(fresh.encode_prompts([CAPTION])[PROMPT_EMBEDS][0], together[1])
    assert torch.equal(fresh.encode_prompts([CAPTION])[PROMPT_EMBEDS][0], together[1])


def test_embedding_cached_in_inference_mode_can_be_trained_on(model: WanModel) -> None:
    """autograd refuses to save inference tensors; a shared cache must not hold one."""
    with torch.inference_mode():
        model.encode_prompts(["a green box"])
    latents, sigma, _ = batch(model, rows=1)
    model.velocity(latents, sigma, model.encode_prompts(["a green box"])).sum().backward()
    model.transformer.zero_grad()


def test_word_order_changes_the_embedding_of_a_word(model: WanModel) -> None:
    """Cross-attention has no positions: a bag of words would make left and right subjects equal."""
    texts = ["red ball blue box", "blue ball red box"]
    one, other = model.encode_prompts(texts)[PROMPT_EMBEDS]
    assert (one[1] - other[1]).abs().max() > 0.1


def test_missing_folder_is_one_line_that_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model.path: no folder at .*nowhere") as caught:
        load_model(ModelConfig(path=str(tmp_path / "nowhere")), device="cpu")
    assert "\n" not in str(caught.value)


def test_folder_without_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no model_index.json"):
        WanModel.load(tmp_path, device=CPU)


def test_folder_of_another_pipeline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "HunyuanVideoPipeline"}))
    with pytest.raises(ValueError, match="names 'HunyuanVideoPipeline': expected 'WanPipeline'"):
        WanModel.load(tmp_path, device=CPU)


def test_two_expert_folder_is_refused(tmp_path: Path) -> None:
    """Wan 2.2 A14B splits the noise levels over two transformers; here one would be trained."""
    index = {"_class_name": "WanPipeline", "transformer_2": ["diffusers", "WanTransformer3DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="two transformers"):
        WanModel.load(tmp_path, device=CPU)


def test_incomplete_folder_names_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(ValueError, match="lacks transformer, vae, text_encoder"):
        WanModel.load(tmp_path, device=CPU)


def test_unavailable_attention_backend_names_the_field(folder: Path) -> None:
    with pytest.raises(ValueError, match="model.attention_backend: 'sage' is not available here"):
        WanModel.load(folder, device=CPU, attention_backend="sage")


def test_native_attention_backend_is_accepted(folder: Path) -> None:
    model = WanModel.load(folder, device=CPU, attention_backend="_native_math")
    assert model.velocity(*batch(model)).isfinite().all()


def test_attention_backend_of_one_model_is_no_other_ones(folder: Path) -> None:
    """A policy and its reference live in one process; diffusers keeps one default for all."""
    other = WanModel.load(folder, device=CPU)
    before = other.velocity(*batch(other))
    default = get_active_backend()
    WanModel.load(folder, device=CPU, attention_backend="_native_math")
    assert get_active_backend() == default
    assert torch.equal(other.velocity(*batch(other)), before)


def get_active_backend() -> object:
    """Return what diffusers has a model follow that names no kernel."""
    return attention_dispatch._AttentionBackendRegistry.get_active_backend()


def test_folder_digest_sees_contents_and_names(folder: Path, tmp_path: Path) -> None:
    """An actor refuses weights made for another base; any byte of the base must count."""
    before = digest_folder(folder)
    assert before == digest_folder(folder)
    (tmp_path / "a").write_bytes(b"12")
    first = digest_folder(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = digest_folder(tmp_path)
    (tmp_path / "b").write_bytes(b"13")
    assert len({first, second, digest_folder(tmp_path)}) == 3


def test_unknown_family_suggests_the_known_one() -> None:
    with pytest.raises(ValueError, match="model.use: unknown name 'wam'; did you mean 'wan'?"):
        load_model(ModelConfig(use="wam"))


def _pipeline_with_statistics(*, mean: float, std: float) -> object:
    from rlvid.models.tiny.build import TinySize, build_pipeline

    size = TinySize(latent_channels=2, vae_dim=4, num_layers=1, num_heads=1, head_dim=12)
    pipeline = build_pipeline([CAPTION], size=size)
    pipeline.vae.register_to_config(latents_mean=[mean] * 2, latents_std=[std] * 2)
    return pipeline


def test_unipc_of_first_order_at_exact_timesteps_samples_what_we_do() -> None:
    """Wan's folders ship UniPC: what sets it apart is its order and timesteps cut to integers."""

    class Exact(UniPCMultistepScheduler):  # type: ignore[misc]
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            self.timesteps = self.sigmas[:-1] * 1000.0

    family = FAMILIES["wan"]
    settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    distances = {}
    for scheduler in (Exact, UniPCMultistepScheduler):
        model = build(family)
        model._pipeline.register_modules(
            scheduler=scheduler(
                **settings, solver_order=1, disable_corrector=list(range(family.num_steps))
            )
        )
        expected = from_pipeline(family, model, family.guidance_scale, "latent")
        latents = sampled(family, model, family.guidance_scale)
        distances[scheduler.__name__] = float((latents - expected).abs().max())
    assert distances["Exact"] < 1e-5
    assert 1e-3 < distances["UniPCMultistepScheduler"] < 0.1
