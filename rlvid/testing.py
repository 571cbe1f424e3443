"""What a plugin author needs: a tiny real model and checks of the protocols.

The checks raise AssertionError with one line that says which promise was broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlvid.records import Prompt

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


def check_reward(
    reward: Any,
    *,
    prompts: Sequence[Prompt] | None = None,
    num_frames: int = 17,
    height: int = 32,
    width: int = 32,
) -> None:
    """Assert that `reward` keeps the promises of `rlvid.rewards.base` on clips of the tiny world.

    One finite float32 number per video, in order, the same on every call, and for `score` the
    same whatever else is in the batch: a reward that depends on its neighbours would change
    with the number of replicas.

    Args:
        reward: an object with `clip_spec` and exactly one of `score` and `score_group`.
        prompts: captions of the tiny world, four at least; eight of its own when None.
        num_frames, height, width: a clip size that the reward takes.
    """
    name = type(reward).__name__
    is_single, is_group = hasattr(reward, "score"), hasattr(reward, "score_group")
    assert hasattr(reward, "clip_spec"), f"{name}: has no clip_spec; use ClipSpec() for any clip"
    assert is_single != is_group, f"{name}: expected exactly one of score() and score_group()"
    prompts = _tiny_world_prompts(8) if prompts is None else list(prompts)
    assert len(prompts) >= 4, f"check_reward: expected at least 4 prompts, got {len(prompts)}"
    videos = _clips_of(prompts, num_frames, height, width)

    def score(clips: Tensor, texts: Sequence[Prompt]) -> Tensor:
        result = reward.score_group(clips, prompts[0]) if is_group else reward.score(clips, texts)
        assert isinstance(result, Tensor), f"{name}: expected a tensor, got {type(result).__name__}"
        return result

    untouched = videos.clone()
    scores = score(videos, prompts)
    assert torch.equal(videos, untouched), f"{name}: changed the videos, which scorers share"
    assert scores.shape == (len(prompts),), (
        f"{name}: returned shape {tuple(scores.shape)} for {len(prompts)} videos; "
        "expected one number per video, in order"
    )
    assert scores.dtype == torch.float32, f"{name}: expected float32, got {scores.dtype}"
    assert bool(torch.isfinite(scores).all()), f"{name}: returned {scores.tolist()}"
    assert torch.equal(score(videos, prompts), scores), f"{name}: another call, another score"
    order = torch.arange(len(prompts)).roll(3)
    moved = score(videos[order], [prompts[int(n)] for n in order])
    # Batched kernels may round differently by a position; the reward scale is about 1.
    assert torch.allclose(moved, scores[order], atol=1e-4), f"{name}: scores are not in order"
    if is_single:
        alone = torch.cat(
            [score(videos[n : n + 1], prompts[n : n + 1]) for n in range(len(prompts))]
        )
        assert torch.allclose(alone, scores, atol=1e-4), f"{name}: a score depends on its batch"


def _tiny_world_prompts(count: int) -> list[Prompt]:
    from rlvid.data.tiny_world.grammar import all_facts, caption
    from rlvid.seeds import prompt_id

    facts = all_facts()[7 :: len(all_facts()) // count][:count]
    return [
        Prompt(prompt_id=prompt_id(caption(one)), text=caption(one), facts=one) for one in facts
    ]


def _clips_of(prompts: Sequence[Prompt], num_frames: int, height: int, width: int) -> Tensor:
    """[B, T, 3, H, W]: true clips, every second one with noise, so that scores differ."""
    from rlvid.data.tiny_world import render_clip
    from rlvid.data.tiny_world.grammar import parse

    generator = torch.Generator().manual_seed(0)
    clips = []
    for index, prompt in enumerate(prompts):
        facts = prompt.facts or parse(prompt.text)
        assert facts, f"check_reward: {prompt.text!r} is not a caption of the tiny world"
        clip = render_clip(facts, index, num_frames=num_frames, height=height, width=width)
        noise = 0.1 * (index % 2) * torch.randn(clip.shape, generator=generator)
        clips.append((clip + noise).clamp(0.0, 1.0))
    return torch.stack(clips)
