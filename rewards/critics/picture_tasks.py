"""Graded calibration tasks: true clips of the tiny world, damaged by a known amount.

For claims of degree: a critic that only tells very good from very bad has no slope to climb.
Strengths are uniform in [0, 1], 0 leaves the clip as it was. Letters: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor

from rlvid.rewards.calibration.clip_sets import ClipSet
from rlvid.rewards.critics.tracking import Frames, to_frames
from rlvid.seeds import derive_seed

Rng = np.random.Generator
Damage = Callable[[Frames, float, Rng], Frames]
"""([T, H, W, 3] in [0, 1], strength in [0, 1], rng) -> the damaged frames."""


def graded_task(
    damage: Damage, name: str, num_clips: int, *, seed: int, split: str
) -> tuple[ClipSet, Tensor]:
    """Return damaged clips and their strengths [N]."""
    clips = ClipSet.draw(None, num_clips, seed=seed, split=split)
    rng = np.random.default_rng(derive_seed(seed, "graded", split, name))
    strengths = rng.uniform(0.0, 1.0, size=num_clips)
    damaged = [
        np.clip(damage(to_frames(video), float(strength), rng), 0.0, 1.0)
        for video, strength in zip(clips.videos, strengths, strict=True)
    ]
    videos = torch.from_numpy(np.stack(damaged)).float().permute(0, 1, 4, 2, 3).contiguous()
    return ClipSet(videos=videos, prompts=clips.prompts), torch.from_numpy(strengths)


def _flicker(frames: Frames, strength: float, rng: Rng) -> Frames:
    sign = np.where(np.arange(len(frames)) % 2, 1.0, -1.0)
    return np.asarray(frames * (1.0 + 0.4 * strength * sign)[:, None, None, None])


def _warp(frames: Frames, strength: float, rng: Rng) -> Frames:
    """Bend each frame by a wave of its own phase, up to 6 % of the height."""
    _, height, width, _ = frames.shape
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    size = 0.06 * strength * height
    result = []
    for frame in frames:
        phase = rng.uniform(0, 2 * np.pi, size=2)
        down = (rows + size * np.sin(4 * np.pi * columns / width + phase[0])).astype(np.float32)
        right = (columns + size * np.sin(4 * np.pi * rows / height + phase[1])).astype(np.float32)
        result.append(
            cv2.remap(frame, right, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        )
    return np.stack(result)


def _jitter(frames: Frames, strength: float, rng: Rng) -> Frames:
    """Shift frames back and forth, up to 6 % of the height."""
    height, width = frames.shape[1:3]
    result = []
    for index, frame in enumerate(frames):
        shift = 0.06 * height * strength * (1.0 if index % 2 else -1.0)
        matrix = np.array([[1.0, 0.0, shift], [0.0, 1.0, 0.3 * shift]])
        result.append(
            cv2.warpAffine(frame, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        )
    return np.stack(result)


def _grid(frames: Frames, strength: float, rng: Rng) -> Frames:
    period = int(rng.choice((2, 4, 8)))
    rows, columns = np.mgrid[0 : frames.shape[1], 0 : frames.shape[2]]
    lines = ((rows % period == 0) | (columns % period == 0)).astype(np.float32)
    return np.asarray(frames - 0.06 * strength * lines[None, :, :, None])


def _blur(frames: Frames, strength: float, rng: Rng) -> Frames:
    sigma = max(0.06 * strength * frames.shape[1], 1e-3)
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])


def _noise(frames: Frames, strength: float, rng: Rng) -> Frames:
    return np.asarray(frames + 0.12 * strength * rng.standard_normal(frames.shape))


flicker_strength = partial(graded_task, _flicker, "flicker")
warp_strength = partial(graded_task, _warp, "warp")
jitter_strength = partial(graded_task, _jitter, "jitter")
grid_strength = partial(graded_task, _grid, "grid")
blur_strength = partial(graded_task, _blur, "blur")
noise_strength = partial(graded_task, _noise, "noise")
