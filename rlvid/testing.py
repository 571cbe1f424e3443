"""What a plugin author needs: a tiny real model and checks of the protocols.

The checks raise AssertionError with one line that says which promise was broken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlvid.algorithms.testing import check_algorithm as check_algorithm
from rlvid.records import Prompt

if TYPE_CHECKING:
    from rlvid.condition import Condition
    from rlvid.flow.prompt_condition import TakesMedia
    from rlvid.models.base import VideoModel
    from rlvid.rewards.base import ClipSpec, Endpoint


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


def check_reward(
    reward: Any,
    *,
    prompts: Sequence[Prompt] | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    endpoints: Sequence[Endpoint] | None = None,
    atol: float = 1e-4,
) -> None:
    """Assert that `reward` keeps the promises of `rlvid.rewards.base` on clips of the tiny world.

    The clips are what `clip_spec` declares, in batches of at most `serving.batch_size`, as the pool
    gives them. Each gets one finite float32 number, in order, the same on every call, and for
    `score` the same whatever else is in the batch: a reward that depends on its neighbours would
    change with the number of replicas.

    Args:
        reward: an object with `clip_spec` and exactly one of `score` and `score_group`.
        prompts: captions of the tiny world, four at least; eight of its own when None. They draw
            the clips; a group-wise reward is told the first for all of them.
        num_frames, height, width: a clip size that the reward takes, where its clip_spec leaves
            that open; 17, 32 and 32 when None.
        endpoints: replicas of the model server that it asks; for a reward with `connect`.
        atol: how much a score may move with its place in a batch; batched kernels round
            differently by place, and the scale of a reward is about 1.
    """
    name = type(reward).__name__
    is_single, is_group = hasattr(reward, "score"), hasattr(reward, "score_group")
    assert hasattr(reward, "clip_spec"), f"{name}: has no clip_spec; use ClipSpec() for any clip"
    assert is_single != is_group, f"{name}: expected exactly one of score() and score_group()"
    spec = reward.clip_spec
    _check_clip_spec(spec, name)
    _check_serving(getattr(reward, "serving", None), name)
    is_served = _connect(reward, endpoints, name)
    prompts = _tiny_world_prompts(8) if prompts is None else list(prompts)
    assert len(prompts) >= 4, f"check_reward: expected at least 4 prompts, got {len(prompts)}"
    size = {
        "num_frames": _chosen("num_frames", num_frames, spec.num_frames, 17, spec.min_frames),
        "height": _chosen("height", height, spec.height, 32),
        "width": _chosen("width", width, spec.width, 32),
    }
    videos = _as_declared(_clips_of(prompts, fps=spec.fps or 8, **size), spec)
    if is_group:  # the pool gives it the clips of one prompt
        prompts = [prompts[0]] * len(prompts)
    score = partial(_scores_of, reward)

    untouched = videos.clone()
    scores = score(videos, prompts)
    assert torch.equal(videos, untouched), f"{name}: changed the videos, which scorers share"
    assert bool(torch.isfinite(scores).all()), f"{name}: returned {scores.tolist()}"
    # A model server may batch the same request with others, and round differently for it.
    again = score(videos, prompts)
    is_same = torch.allclose(again, scores, atol=atol) if is_served else again.equal(scores)
    assert is_same, f"{name}: another call, another score"
    order = torch.arange(len(prompts)).roll(3)
    moved = score(videos[order], [prompts[int(n)] for n in order])
    assert torch.allclose(moved, scores[order], atol=atol), f"{name}: scores are not in order"
    if is_single:
        alone = torch.cat(
            [score(videos[n : n + 1], prompts[n : n + 1]) for n in range(len(prompts))]
        )
        assert torch.allclose(alone, scores, atol=atol), f"{name}: a score depends on its batch"


def _check_clip_spec(spec: Any, name: str) -> None:
    """Assert that the declaration can be met."""
    where = f"{name}.clip_spec"
    fields = ("fps", "num_frames", "min_frames", "height", "width", "colour", "value_range")
    assert all(hasattr(spec, field) for field in fields), (
        f"{where}: expected a ClipSpec, got {type(spec).__name__}"
    )
    for field in fields[:5]:
        value = getattr(spec, field)
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        assert value is None or is_count, (
            f"{where}.{field}: expected a whole number of at least 1 or None, got {value!r}"
        )
    assert not (spec.num_frames and spec.min_frames) or spec.num_frames >= spec.min_frames, (
        f"{where}: no clip has num_frames {spec.num_frames} and min_frames {spec.min_frames}"
    )
    assert spec.colour in ("rgb", "grey"), (
        f"{where}.colour: expected 'rgb' or 'grey', got {spec.colour!r}"
    )
    try:
        black, white = (float(bound) for bound in spec.value_range)
    except (TypeError, ValueError):
        black = white = 0.0
    assert -math.inf < black < white < math.inf, (
        f"{where}.value_range: expected (black, white) with black below white, "
        f"got {spec.value_range!r}"
    )


def _check_serving(serving: Any, name: str) -> None:
    """Assert that the pool can run the scorer as it declares; None declares nothing."""
    if serving is None:
        return
    where = f"{name}.serving"
    lowest = {
        "batch_size": 1, "num_replicas": 1, "max_wait_s": 0, "num_cpus": 0, "num_gpus": 0,
        "deadline_s": 0,
    }  # fmt: skip
    known = all(hasattr(serving, field) for field in (*lowest, "device", "max_replicas"))
    assert known, f"{where}: expected a Serving, got {type(serving).__name__}"
    for field, low in lowest.items():
        value = getattr(serving, field)
        kind = int if low == 1 else (int, float)
        fits = isinstance(value, kind) and value >= low and (field != "deadline_s" or value > 0)
        assert fits, (
            f"{where}.{field}: expected "
            f"{'a whole number of at least 1' if low else 'a number, not negative'}"
            f"{' and not 0' if field == 'deadline_s' else ''}, got {value!r}"
        )
    most = serving.max_replicas
    assert most is None or (isinstance(most, int) and most >= serving.num_replicas), (
        f"{where}.max_replicas: expected None or at least num_replicas "
        f"{serving.num_replicas}, got {most!r}"
    )
    assert serving.device.split(":")[0] in ("cpu", "cuda"), (
        f"{where}.device: expected 'cpu' or 'cuda', got {serving.device!r}"
    )


def _connect(reward: Any, endpoints: Sequence[Endpoint] | None, name: str) -> bool:
    """Give the reward its model server; returns whether it asks one."""
    is_served = hasattr(reward, "connect")
    assert is_served or endpoints is None, f"{name}: was given endpoints but has no connect()"
    assert not is_served or endpoints, (
        f"{name}: asks a model server; give check_reward endpoints=[Endpoint(...)]"
    )
    if is_served:
        reward.connect(list(endpoints or ()))
    return is_served


def _chosen(
    name: str, given: int | None, declared: int | None, default: int, least: int | None = None
) -> int:
    """Return the clip's size along one axis."""
    assert given is None or declared in (None, given), (
        f"check_reward: given {name} {given}, but clip_spec takes only {declared}"
    )
    assert given is None or given >= (least or 0), (
        f"check_reward: given {name} {given}, but clip_spec takes no less than {least}"
    )
    return given or declared or max(default, least or 0)


def _scores_of(reward: Any, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Score as the pool does: in batches, a group-wise scorer the whole group at once."""
    name, method = type(reward).__name__, "score"
    limit = getattr(getattr(reward, "serving", None), "batch_size", len(videos))
    if hasattr(reward, "score_group"):
        method, limit = "score_group", len(videos)
    results = []
    for first in range(0, len(videos), limit):
        clips, texts = videos[first : first + limit], prompts[first : first + limit]
        try:
            with torch.no_grad():
                result = (
                    reward.score_group(clips, texts[0])
                    if method == "score_group"
                    else reward.score(clips, texts)
                )
        except Exception as error:  # whatever a plug-in raises
            raise AssertionError(
                f"{name}: {method}() raised {type(error).__name__}: {error} "
                f"on clips {tuple(clips.shape)}"
            ) from error
        assert isinstance(result, Tensor), f"{name}: expected a tensor, got {type(result).__name__}"
        assert result.shape == (len(clips),), (
            f"{name}: returned shape {tuple(result.shape)} for {len(clips)} videos; "
            "expected one number per video, in order"
        )
        assert result.dtype == torch.float32, f"{name}: expected float32, got {result.dtype}"
        results.append(result.cpu())
    return torch.cat(results)


def _as_declared(videos: Tensor, spec: ClipSpec) -> Tensor:
    """[B, T, 3, H, W] in [0, 1] -> 256 levels in the colours and range of `spec`."""
    videos = (videos * 255.0).round() / 255.0
    if spec.colour == "grey":
        luma = torch.tensor([0.2126, 0.7152, 0.0722]).view(3, 1, 1)  # Rec. 709
        videos = (videos * luma).sum(dim=2, keepdim=True)
    black, white = spec.value_range
    return videos * (white - black) + black


def _tiny_world_prompts(count: int) -> list[Prompt]:
    from rlvid.data.tiny_world.grammar import all_facts, caption
    from rlvid.seeds import prompt_id

    facts = all_facts()[7 :: len(all_facts()) // count][:count]
    return [
        Prompt(prompt_id=prompt_id(caption(one)), text=caption(one), facts=one) for one in facts
    ]


def _clips_of(
    prompts: Sequence[Prompt], *, num_frames: int, height: int, width: int, fps: int
) -> Tensor:
    """[B, T, 3, H, W]: true clips, every second one with noise, so that scores differ."""
    from rlvid.data.tiny_world import render_clip
    from rlvid.data.tiny_world.grammar import parse

    generator = torch.Generator().manual_seed(0)
    clips = []
    for index, prompt in enumerate(prompts):
        facts = prompt.facts or parse(prompt.text)
        assert facts, f"check_reward: {prompt.text!r} is not a caption of the tiny world"
        clip = render_clip(facts, index, num_frames=num_frames, height=height, width=width, fps=fps)
        noise = 0.1 * (index % 2) * torch.randn(clip.shape, generator=generator)
        clips.append((clip + noise).clamp(0.0, 1.0))
    return torch.stack(clips)
