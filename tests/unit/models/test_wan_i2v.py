"""The Wan image-to-video adapter, on tiny random pipelines of diffusers' own classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from rlvid.condition import Condition
from rlvid.config import ModelConfig
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import sample_ode
from rlvid.models import load_decoder, load_model
from rlvid.models.base import MediaModel
from rlvid.models.tiny_families.wan import build_i2v, build_ti2v
from rlvid.models.wan_i2v import IMAGE_EMBEDS, IMAGE_LATENTS, WanImageToVideoModel
from rlvid.testing import check_model

CPU = torch.device("cpu")
CAPTION = "a red ball falls to the left"
CLIP = (9, 32, 32)
FOLDERS: dict[str, dict[str, bool]] = {
    "first": {},
    "first-last": {"has_last": True},
    "no-clip": {"sees_images": False},
}


@pytest.fixture(scope="module", params=FOLDERS)
def model(request: pytest.FixtureRequest) -> WanImageToVideoModel:
    return WanImageToVideoModel(build_i2v(**FOLDERS[request.param]), device=CPU)


@pytest.fixture(scope="module")
def folder(model: WanImageToVideoModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    model.save(str(folder))
    return folder


def noise_of(model: WanImageToVideoModel, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, *model.latent_shape(*CLIP), generator=generator)


def pictures() -> tuple[Tensor, Tensor]:
    """A first and a last frame [3, H, W] of 256 levels."""
    generator = torch.Generator().manual_seed(2)
    levels = torch.randint(0, 256, (2, 3, *CLIP[1:]), generator=generator)
    first, last = levels.float().div(255.0)
    return first, last


def as_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.mul(255.0).round().byte().permute(1, 2, 0).numpy())


def media_of(model: WanImageToVideoModel) -> dict[str, Tensor]:
    first, last = pictures()
    media = {"first_frame": first[None]}
    return {**media, "last_frame": last[None]} if "last_frame" in model.media else media


def conditions(model: WanImageToVideoModel) -> tuple[Condition, Condition]:
    media = model.encode_media(media_of(model), CLIP[0])
    return model.encode_prompts([CAPTION]) | media, model.encode_prompts([""]) | media


def test_adapter_keeps_the_protocol(model: WanImageToVideoModel) -> None:
    assert isinstance(model, MediaModel)
    check_model(model, num_frames=CLIP[0], height=CLIP[1], width=CLIP[2])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_pipeline_samples_what_the_adapter_samples(
    model: WanImageToVideoModel, scale: float
) -> None:
    """Mask, padding with grey, CLIP's view, and frames in the negative as well."""
    noise, (first, last) = noise_of(model), map(as_image, pictures())
    condition, negative = conditions(model)

    def expected(output_type: str) -> Any:
        return model._pipeline(
            image=first,
            last_image=last if "last_frame" in model.media else None,
            prompt=CAPTION,
            negative_prompt="",
            height=CLIP[1],
            width=CLIP[2],
            num_frames=CLIP[0],
            num_inference_steps=4,
            guidance_scale=scale,
            latents=noise.clone(),
            max_sequence_length=model.max_sequence_length,
            output_type=output_type,
        ).frames

    velocity = partial(
        guided_velocity, model, condition=condition, negative=negative, guidance_scale=scale
    )
    latents = sample_ode(velocity, noise, model.sigmas(4, *CLIP))
    torch.testing.assert_close(latents, expected("latent"), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(model.decode(latents), expected("pt"), atol=1e-5, rtol=0.0)


def test_saved_pipeline_loads_bit_for_bit(model: WanImageToVideoModel, folder: Path) -> None:
    """Velocities are compared within rounding: how a weight lies in memory picks the kernel."""
    loaded = load_model(ModelConfig(use="wan_i2v", path=str(folder)), device="cpu")
    assert isinstance(loaded, WanImageToVideoModel)
    assert (loaded.media, loaded.required_media) == (model.media, model.required_media)
    torch.testing.assert_close(
        loaded.transformer.state_dict(), model.transformer.state_dict(), atol=0.0, rtol=0.0
    )
    own, read = conditions(model)[0], conditions(loaded)[0]
    torch.testing.assert_close(dict(read.tensors), dict(own.tensors), atol=0.0, rtol=0.0)
    noise, sigma = noise_of(model), torch.tensor([0.7])
    with torch.no_grad():
        expected = model.velocity(noise, sigma, own)
        torch.testing.assert_close(
            loaded.velocity(noise, sigma, read), expected, atol=1e-5, rtol=0.0
        )


def test_decoder_alone_gives_the_same_pixels(model: WanImageToVideoModel, folder: Path) -> None:
    decode = load_decoder(ModelConfig(use="wan_i2v", path=str(folder), device="cpu"))
    latents = noise_of(model, rows=2)
    assert torch.equal(decode(latents), model.decode(latents))


def test_frames_it_needs_follow_from_the_transformer() -> None:
    needs = {
        name: sorted(WanImageToVideoModel(build_i2v(**options), device=CPU).required_media)
        for name, options in FOLDERS.items()
    }
    assert needs == {
        "first": ["first_frame"],
        "first-last": ["first_frame", "last_frame"],
        "no-clip": ["first_frame"],
    }


def test_rows_of_a_batch_have_pictures_of_their_own(model: WanImageToVideoModel) -> None:
    """P pictures of B clips lie one behind the other in the transformer; they must not mix."""
    media = media_of(model)
    swapped = {name: pixels.flip(-1) for name, pixels in media.items()}
    both = {name: torch.cat([media[name], swapped[name]]) for name in media}
    together = model.encode_prompts([CAPTION, CAPTION]) | model.encode_media(both, CLIP[0])
    noise, sigma = noise_of(model).expand(2, -1, -1, -1, -1), torch.tensor([0.7, 0.7])
    with torch.no_grad():
        batched = model.velocity(noise, sigma, together)
        alone = [model.velocity(noise[:1], sigma[:1], together.rows([n])) for n in range(2)]
    assert not torch.allclose(batched[0], batched[1], atol=1e-3)
    torch.testing.assert_close(batched, torch.cat(alone), atol=1e-5, rtol=0.0)


def test_condition_says_which_frames_are_given(model: WanImageToVideoModel) -> None:
    condition = model.encode_media(media_of(model), CLIP[0])
    given = condition[IMAGE_LATENTS][0, :4, :, 0, 0]
    ends_given = float("last_frame" in model.media)
    assert given[:, 0].tolist() == [1.0] * 4
    assert given[:, 1:].tolist() == [[0.0, 0.0]] * 3 + [[0.0, ends_given]]
    assert (IMAGE_EMBEDS in set(condition)) == model._sees_images


def test_text_alone_is_refused(model: WanImageToVideoModel) -> None:
    with pytest.raises(ValueError, match="the condition is of a text alone: expected .*first_fr"):
        model.velocity(noise_of(model), torch.tensor([0.7]), model.encode_prompts([CAPTION]))


def test_first_and_last_of_one_frame_are_refused(model: WanImageToVideoModel) -> None:
    first, last = pictures()
    with pytest.raises(ValueError, match="at least 5, got 1"):
        model.encode_media({"first_frame": first[None], "last_frame": last[None]}, 1)


def test_short_tokenizer_is_refused() -> None:
    """diffusers' attention takes the last 512 tokens for the text, whatever they are."""
    pipeline = build_i2v()
    pipeline.tokenizer.model_max_length = 16
    with pytest.raises(ValueError, match="tokenizer ends at 16 tokens: expected 512"):
        WanImageToVideoModel(pipeline, device=CPU)


def test_transformer_of_another_kind_is_refused() -> None:
    pipeline = build_i2v()
    pipeline.transformer = build_ti2v().transformer
    with pytest.raises(ValueError, match="takes 4 channels: expected 12"):
        WanImageToVideoModel(pipeline, device=CPU)


def test_missing_image_encoder_is_refused() -> None:
    pipeline = build_i2v()
    pipeline.image_encoder = None
    with pytest.raises(ValueError, match="the folder has no image_encoder"):
        WanImageToVideoModel(pipeline, device=CPU)


def test_folder_of_another_pipeline_is_refused(tmp_path: Path) -> None:
    build_ti2v().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="names 'WanPipeline': expected 'WanImageToVideoPipeline'"):
        WanImageToVideoModel.load(tmp_path, device=CPU)
