"""A tiny real model, and what a model of `rlvid.models` promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from rlvid.condition import Condition
    from rlvid.flow.prompt_condition import TakesMedia
    from rlvid.models.base import VideoModel


def tiny_model(seed: int = 0) -> VideoModel:
    """Return a random Wan model of about 60 thousand parameters, built in well under a second.

    It knows the words of the tiny world; clips of 9x16x16 pixels are [4, 3, 2, 2] latents.
    """
    from rlvid.data.tiny_world.grammar import all_facts, caption
    from rlvid.models.tiny.build import TinySize, build_pipeline
    from rlvid.models.wan import WanModel

    size = TinySize(
        max_sequence_length=16,
        text_dim=16,
        text_layers=1,
        latent_channels=4,
        vae_dim=4,
        num_heads=2,
        head_dim=12,
        num_layers=2,
        ffn_dim=32,
    )
    pipeline = build_pipeline([caption(facts) for facts in all_facts()], size=size, seed=seed)
    pipeline.vae.requires_grad_(False).eval()
    pipeline.transformer.eval()
    return WanModel(pipeline, device=torch.device("cpu"))


def check_model(
    model: VideoModel, *, num_frames: int = 9, height: int = 16, width: int = 16
) -> None:
    """Assert that `model` keeps the promises of `rlvid.models.base.VideoModel`.

    Args:
        num_frames, height, width: a clip size that the model takes.
    """
    from rlvid.flow.prompt_condition import TakesMedia
    from rlvid.models.base import VideoModel as Protocol

    assert isinstance(model, Protocol), f"{type(model).__name__} lacks a method of VideoModel"
    shape = model.latent_shape(num_frames, height, width)
    condition = model.encode_prompts(["a red ball", ""])
    _check_condition(condition, model.encode_prompts([""]), "encode_prompts")
    if isinstance(model, TakesMedia):
        condition |= _checked_media(model, shape, (num_frames, height, width))

    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *shape, generator=generator).to(model.device)
    sigma = torch.tensor([0.9, 0.3], device=model.device)
    velocity = model.velocity(latents, sigma, condition)
    assert velocity.shape == latents.shape, (
        f"velocity: expected {latents.shape}, got {velocity.shape}"
    )
    assert velocity.dtype == torch.float32, f"velocity: expected float32, got {velocity.dtype}"
    assert velocity.requires_grad, "velocity: must be differentiable in the transformer"
    with torch.no_grad():
        again = model.velocity(latents, sigma, condition)
    # The on-policy ratio is exactly 1 only if sampling and learning compute the same bits.
    assert torch.equal(again, velocity), "velocity: differs with and without gradient"

    videos = model.decode(latents)
    expected = (2, num_frames, 3, height, width)
    assert videos.shape == expected, f"decode: expected {expected}, got {tuple(videos.shape)}"
    assert videos.dtype == torch.float32, f"decode: expected float32, got {videos.dtype}"
    assert 0.0 <= float(videos.min()) <= float(videos.max()) <= 1.0, "decode: outside [0, 1]"
    encoded = model.encode(videos)
    assert encoded.shape == latents.shape, f"encode: expected {latents.shape}, got {encoded.shape}"
    assert encoded.dtype == torch.float32, f"encode: expected float32, got {encoded.dtype}"


def _check_condition(condition: Condition, alone: Condition, method: str) -> None:
    """Assert what is promised of the condition of two inputs, the second of which is `alone`."""
    assert condition.num_rows == 2, f"{method}: expected a row for each input"
    for name in condition:
        assert not condition[name].requires_grad, f"{method}: {name}: the encoder must be frozen"
        assert torch.equal(alone[name][0], condition[name][1]), (
            f"{method}: {name} must not depend on what it is batched with"
        )


def _checked_media(
    model: TakesMedia, shape: Sequence[int], size: tuple[int, int, int]
) -> Condition:
    """Return the condition of two clips' media of all kinds that the model takes, checked."""
    from rlvid.media import CLIPS, SUFFIXES

    name = type(model).__name__
    assert model.required_media <= model.media <= set(SUFFIXES), (
        f"{name}: expected media of {sorted(SUFFIXES)} and required_media among them, got "
        f"{sorted(model.media)} and {sorted(model.required_media)}"
    )
    assert model.clip_size(shape) == size, (
        f"clip_size: expected {size} of {tuple(shape)}, got {model.clip_size(shape)}"
    )
    num_frames, height, width = size
    generator = torch.Generator().manual_seed(1)
    media = {
        one: torch.rand(
            2, *((num_frames,) if one in CLIPS else ()), 3, height, width, generator=generator
        )
        for one in sorted(model.media)
    }
    condition = model.encode_media(media, num_frames)
    alone = model.encode_media({one: rows[1:] for one, rows in media.items()}, num_frames)
    _check_condition(condition, alone, "encode_media")
    return condition
