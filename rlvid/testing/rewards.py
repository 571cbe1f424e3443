"""What a reward of `rlvid.rewards` promises, tried on clips of the tiny world."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlvid.records import Prompt

if TYPE_CHECKING:
    from rlvid.rewards.base import ClipSpec, Endpoint


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
    _check_scores(reward, videos, prompts, atol=atol, is_served=is_served)


def _check_scores(
    reward: Any, videos: Tensor, prompts: Sequence[Prompt], *, atol: float, is_served: bool
) -> None:
    """Assert what is promised of the numbers for clips [B, T, C, H, W], a prompt for each."""
    name, score = type(reward).__name__, partial(_scores_of, reward)
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
    if hasattr(reward, "score"):
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
