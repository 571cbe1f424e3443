"""The Stable Diffusion 3 adapter, on a tiny random pipeline of diffusers' own classes."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from rlvid.models.sd3 import StableDiffusion3Model
from rlvid.models.tiny_families.sd3 import build_model, build_pipeline

CPU = torch.device("cpu")
CAPTION = "a red ball falls to the left"
CLIP = {"num_frames": 1, "height": 16, "width": 32}


@pytest.fixture(scope="module")
def model() -> StableDiffusion3Model:
    return build_model()


@pytest.mark.parametrize("num_steps", [1, 3, 28])
@pytest.mark.parametrize("is_dynamic", [False, True])
def test_noise_levels_are_those_of_the_pipeline(num_steps: int, is_dynamic: bool) -> None:
    """Its scheduler shifts the last level twice; a folder may shift by the number of tokens."""
    pipeline = build_pipeline()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=is_dynamic)
    model = StableDiffusion3Model(pipeline, device=CPU)
    ours = model.sigmas(num_steps, **CLIP)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(
        CAPTION,
        height=CLIP["height"],
        width=CLIP["width"],
        num_inference_steps=num_steps,
        guidance_scale=1.0,
        output_type="latent",
    )
    assert ours == pytest.approx(pipeline.scheduler.sigmas.tolist(), abs=1e-6)


def test_all_encoders_read_the_prompt(model: StableDiffusion3Model) -> None:
    """CLIP's tokens come first, its two encoders side by side, T5's behind them."""
    one, other = CAPTION, CAPTION.replace("red", "blue")
    condition = model.encode_prompts([one, other])
    change = (condition["prompt_embeds"][0] - condition["prompt_embeds"][1]).abs()
    parts = (change[:77, :8], change[:77, 8:16], change[77:])
    assert all(part.max() > 1e-3 for part in parts)
    assert torch.equal(change[:77, 16:], torch.zeros(77, 8))
    pooled = condition["pooled_embeds"]
    assert not torch.allclose(pooled[0], pooled[1], atol=1e-3)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((5, 16, 16), "model.num_frames: expected 1 of an image model, got 5"),
        ((1, 16, 72), "model.width: expected at most 64, for which the transformer has positions"),
    ],
)
def test_clip_that_is_no_image_of_its_positions_is_refused(
    model: StableDiffusion3Model, size: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.latent_shape(*size)
