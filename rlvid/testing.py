"""What a plugin author needs: a tiny real model and checks of the protocols.

The checks raise AssertionError with one line that says which promise was broken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
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
    from rlvid.models.base import VideoModel as Protocol

    assert isinstance(model, Protocol), f"{type(model).__name__} lacks a method of VideoModel"
    shape = model.latent_shape(num_frames, height, width)
    prompt_embeds = model.encode_prompts(["a red ball", ""])
    assert prompt_embeds.shape[0] == 2, "encode_prompts: expected a row for each text"
    assert not prompt_embeds.requires_grad, "encode_prompts: the text encoder must be frozen"
    assert torch.equal(model.encode_prompts([""])[0], prompt_embeds[1]), (
        "encode_prompts: an embedding must not depend on what it is batched with"
    )

    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *shape, generator=generator).to(model.device)
    sigma = torch.tensor([0.9, 0.3], device=model.device)
    velocity = model.velocity(latents, sigma, prompt_embeds)
    assert velocity.shape == latents.shape, (
        f"velocity: expected {latents.shape}, got {velocity.shape}"
    )
    assert velocity.dtype == torch.float32, f"velocity: expected float32, got {velocity.dtype}"
    assert velocity.requires_grad, "velocity: must be differentiable in the transformer"
    with torch.no_grad():
        again = model.velocity(latents, sigma, prompt_embeds)
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
