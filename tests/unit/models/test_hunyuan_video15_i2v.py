"""The HunyuanVideo-1.5 image-to-video adapter, on a tiny random pipeline of diffusers' classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ClassifierFreeGuidance
from PIL import Image
from torch import Tensor

from rlvid.condition import Condition
from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import sample_ode
from rlvid.models.base import MediaModel
from rlvid.models.hunyuan_video15 import HunyuanVideo15Model
from rlvid.models.hunyuan_video15_i2v import IMAGE_LATENTS, HunyuanVideo15ImageModel
from rlvid.models.tiny_families.hunyuan_video15 import build_image_model, build_image_pipeline
from rlvid.testing import check_model

CPU = torch.device("cpu")
CAPTION = 'a red box with "to go"'
CLIP = {"num_frames": 9, "height": 16, "width": 16}
"""The size that the pipeline chooses for a square picture."""
STEPS = 4


@pytest.fixture(scope="module")
def model() -> HunyuanVideo15ImageModel:
    return build_image_model()


def noise(model: HunyuanVideo15ImageModel, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, *model.latent_shape(**CLIP), generator=generator)


def pictures(rows: int = 1) -> Tensor:
    """[B, 3, 16, 16] of 256 levels."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (rows, 3, 16, 16), generator=generator).float() / 255.0


def told(model: HunyuanVideo15ImageModel, text: str, first: Tensor) -> Condition:
    return model.encode_prompts([text] * len(first)) | model.encode_media(
        {"first_frame": first}, CLIP["num_frames"]
    )


def batch(model: HunyuanVideo15ImageModel) -> tuple[Tensor, Tensor, Condition]:
    return noise(model, 2), torch.tensor([0.9, 0.3]), told(model, CAPTION, pictures(2))


def from_pipeline(
    model: HunyuanVideo15ImageModel, guidance_scale: float, output_type: str
) -> Tensor:
    """Return what the pipeline makes of the same noise and picture."""
    pipeline = model._pipeline
    pipeline.set_progress_bar_config(disable=True)
    pipeline.guider = ClassifierFreeGuidance(guidance_scale=guidance_scale)
    levels = (pictures()[0] * 255.0).round().to(torch.uint8).permute(1, 2, 0)
    result: Tensor = pipeline(
        Image.fromarray(levels.numpy()),
        CAPTION,
        num_frames=CLIP["num_frames"],
        num_inference_steps=STEPS,
        latents=noise(model),
        output_type=output_type,
    ).frames
    return result


def test_adapter_keeps_the_protocol(model: HunyuanVideo15ImageModel) -> None:
    assert isinstance(model, MediaModel)
    check_model(model, **CLIP)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_pipeline_samples_what_the_adapter_samples(
    model: HunyuanVideo15ImageModel, guidance_scale: float
) -> None:
    """The picture's latents, mask and SigLIP tokens agree; the negative has them as well."""
    condition, negative = (told(model, text, pictures()) for text in (CAPTION, ""))

    def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
        return guided_velocity(model, latents, sigma, condition, negative, guidance_scale)

    latents = sample_ode(velocity, noise(model), model.sigmas(STEPS, **CLIP))
    expected = from_pipeline(model, guidance_scale, "latent")
    assert expected.std() > 0.1
    torch.testing.assert_close(latents, expected, rtol=0.0, atol=1e-5)
    frames = from_pipeline(model, guidance_scale, "pt")
    torch.testing.assert_close(model.decode(latents), frames, rtol=0.0, atol=1e-5)


def test_another_picture_is_another_velocity(model: HunyuanVideo15ImageModel) -> None:
    latents, sigma = noise(model), torch.tensor([0.5])
    with torch.no_grad():
        one, other = (
            model.velocity(latents, sigma, told(model, CAPTION, picture[None]))
            for picture in pictures(2)
        )
    assert (one - other).abs().max() > 1e-3


def test_text_alone_is_refused(model: HunyuanVideo15ImageModel) -> None:
    """Zeros for the picture would make it a text-to-video model that nobody trained."""
    with pytest.raises(ValueError, match=r"text alone: expected that of \['first_frame'\]"):
        model.velocity(noise(model), torch.tensor([0.5]), model.encode_prompts([CAPTION]))


def test_first_latent_frame_alone_is_given(model: HunyuanVideo15ImageModel) -> None:
    given = told(model, CAPTION, pictures())[IMAGE_LATENTS]
    assert given[:, -1, 0].unique().tolist() == [1.0]
    assert given[:, -1, 1:].unique().tolist() == [0.0]
    torch.testing.assert_close(given[:, :-1, :1], model.encode(pictures()[:, None]))


def test_model_distilled_to_few_steps_is_refused() -> None:
    pipeline: Any = build_image_pipeline()
    pipeline.transformer.register_to_config(use_meanflow=True)
    with pytest.raises(ValueError, match="use_meanflow"):
        HunyuanVideo15ImageModel(pipeline, device=CPU)


def test_saved_pipeline_loads_with_the_same_bits(
    model: HunyuanVideo15ImageModel, tmp_path: Path
) -> None:
    model.save(str(tmp_path))
    loaded = HunyuanVideo15ImageModel.load(tmp_path, device=CPU)
    with torch.no_grad():
        assert torch.equal(loaded.velocity(*batch(loaded)), model.velocity(*batch(model)))
    with pytest.raises(ValueError, match="expected 'HunyuanVideo15Pipeline'"):
        HunyuanVideo15Model.load(tmp_path, device=CPU)
