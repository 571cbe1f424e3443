"""What our sampler and diffusers' own pipeline make of the same noise, prompt and frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from diffusers import ClassifierFreeGuidance, UniPCMultistepScheduler, WanImageToVideoPipeline
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from rlvid.flow.guidance import guided_velocity
from rlvid.flow.sampler import sample_ode
from tests.unit.models.family_checks import Family, condition_of, frames, noise


def sampled(family: Family, model: Any, guidance_scale: float) -> Tensor:
    """Return latents [1, C, F, H, W] of the family's prompt, guided away from the empty one."""
    velocity = partial(
        guided_velocity,
        model,
        condition=condition_of(family, model, [family.caption]),
        negative=condition_of(family, model, [""]),
        guidance_scale=guidance_scale,
    )
    sigmas = model.sigmas(family.num_steps, *family.clip)
    return sample_ode(velocity, noise(family, model), sigmas)


def from_pipeline(family: Family, model: Any, guidance_scale: float, output_type: str) -> Tensor:
    """Return latents as the pipeline has them ("latent"), or frames in [0, 1] ("pt").

    The prompt is the family's and the negative the empty text; `model` is of the test alone: calls
    leave their traces in its pipeline.
    """
    num_frames, height, width = family.clip
    asked = {
        "prompt": family.caption,
        "negative_prompt": "",
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "num_inference_steps": family.num_steps,
        "guidance_scale": guidance_scale,
        "latents": in_pipeline(family, model, noise(family, model)),
        "output_type": output_type,
    }
    if family.is_shown_frames:
        media = frames(family, model)
        if "control" in media:
            asked |= control_inputs(media, num_frames)
        else:
            images = {"first_frame": "image", "last_frame": "last_image"}
            asked |= {images[name]: _picture(one[0]) for name, one in media.items()}
    return _CALLS.get(family.use, _call)(model, asked)


def control_inputs(media: Mapping[str, Tensor], num_frames: int) -> dict[str, list[Tensor]]:
    """Return video and mask as WanVACEPipeline takes them, each [T, 3, height, width] in [0, 1].

    Its own example paints frames that nobody gives in level 128 of 255; 0.5 is the grey that it
    takes itself where there is no video.
    """
    height, width = next(iter(media.values())).shape[-2:]
    video = torch.full((num_frames, 3, height, width), 0.5)
    if "control" in media:
        video = media["control"][0].clone()
    mask = torch.ones_like(video)
    for name, place in (("first_frame", 0), ("last_frame", -1)):
        if name in media:
            video[place], mask[place] = media[name][0], 0.0
    return {"video": [video], "mask": [mask]}


def _picture(pixels: Tensor) -> Any:
    return to_pil_image(pixels.mul(255.0).round().byte())


def in_pipeline(family: Family, model: Any, latents: Tensor) -> Tensor:
    """Return latents [B, C, F, H, W] as the pipeline takes them, and gives them back."""
    if family.use == "sd3":
        return latents.squeeze(2)
    if family.use in ("cogvideox", "cogvideox_i2v"):
        return latents.transpose(1, 2)
    if family.use == "ltx":
        packed: Tensor = model._pipeline._pack_latents(latents)
        return packed
    return latents


def _call(model: Any, asked: dict[str, Any], pipeline: Any = None) -> Tensor:
    whole = model._pipeline if pipeline is None else pipeline
    whole.set_progress_bar_config(disable=True)
    result: Tensor = whole(**asked, max_sequence_length=model.max_sequence_length).frames
    return result


def _cogvideox_i2v(model: Any, asked: dict[str, Any]) -> Tensor:
    """The pipeline draws the picture's latents; of this posterior every draw is the mode."""
    last, channels = model.vae.encoder.conv_out.conv, model.vae.config.latent_channels
    with torch.no_grad():
        last.weight[channels:] = 0.0
        last.bias[channels:] = -30.0
    return _call(model, asked)


class LetsAllThrough:
    """NVIDIA's guardrail downloads several models; parity needs none of its answers."""

    def to(self, device: Any) -> None:
        """Do nothing: it has no weights."""

    def check_text_safety(self, text: str) -> bool:
        return True


def _cosmos(model: Any, asked: dict[str, Any]) -> Tensor:
    """With UniPC's steps of first order alone, which are Euler in flow.

    UniPC starts at order 1 and then looks back; its sigmas do not depend on its order. The
    pipeline's guidance counts from 0.
    """
    parts = model._pipeline.components
    scheduler = UniPCMultistepScheduler.from_config(
        parts["scheduler"].config,
        solver_order=1,
        disable_corrector=list(range(asked["num_inference_steps"])),
    )
    pipeline = type(model._pipeline)(
        **{**parts, "scheduler": scheduler, "safety_checker": LetsAllThrough()}
    )
    return _call(model, asked | {"guidance_scale": asked["guidance_scale"] - 1.0}, pipeline)


def _hunyuan_video(model: Any, asked: dict[str, Any]) -> Tensor:
    """Its `guidance_scale` is the embedded one, left at its default."""
    asked["true_cfg_scale"] = asked.pop("guidance_scale")
    return _call(model, asked)


def _hunyuan_video15(model: Any, asked: dict[str, Any]) -> Tensor:
    pipeline = model._pipeline
    pipeline.guider = ClassifierFreeGuidance(guidance_scale=asked.pop("guidance_scale"))
    pipeline.set_progress_bar_config(disable=True)
    result: Tensor = pipeline(**asked).frames
    return result


def _hunyuan_video15_i2v(model: Any, asked: dict[str, Any]) -> Tensor:
    """The pipeline chooses the size by the picture: for a square one, the family's own."""
    del asked["height"], asked["width"]
    return _hunyuan_video15(model, asked)


def _sd3(model: Any, asked: dict[str, Any]) -> Tensor:
    """Images, not frames."""
    del asked["num_frames"]
    pipeline, length = model._pipeline, model.max_sequence_length
    pipeline.set_progress_bar_config(disable=True)
    result: Tensor = pipeline(**asked, max_sequence_length=length).images
    return result


def _wan_ti2v(model: Any, asked: dict[str, Any]) -> Tensor:
    """With a first frame diffusers' other pipeline of the same parts, which holds it."""
    if "image" not in asked:
        return _call(model, asked)
    pipeline = WanImageToVideoPipeline(**model._pipeline.components, expand_timesteps=True)
    return _call(model, asked, pipeline)


_CALLS: dict[str, Callable[[Any, dict[str, Any]], Tensor]] = {
    "cogvideox_i2v": _cogvideox_i2v,
    "cosmos": _cosmos,
    "hunyuan_video": _hunyuan_video,
    "hunyuan_video15": _hunyuan_video15,
    "hunyuan_video15_i2v": _hunyuan_video15_i2v,
    "sd3": _sd3,
    "wan_ti2v": _wan_ti2v,
}
"""Families whose pipelines are not asked as the others are."""
