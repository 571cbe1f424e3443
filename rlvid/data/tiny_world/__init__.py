"""The tiny world: clips of one coloured shape under exact physics, described by one sentence.

Small enough for a model of a million parameters to learn on a CPU, and exact enough for a reward
to be checked against the truth: `render_clip` gives pixels, `track_of` what happened in them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlvid.data.tiny_world.draw import draw
from rlvid.data.tiny_world.grammar import all_facts, caption, parse, split_of
from rlvid.data.tiny_world.scene import sample_scene
from rlvid.data.tiny_world.simulate import Track, simulate

__all__ = ["Track", "all_facts", "caption", "parse", "render_clip", "split_of", "track_of"]


def track_of(
    facts: Mapping[str, str], seed: int, *, num_frames: int = 17, fps: float = 8
) -> Track:
    """Return the exact motion of the unbroken clip of the same arguments."""
    return simulate(sample_scene(facts, seed), num_frames, fps)


def render_clip(
    facts: Mapping[str, str],
    seed: int,
    *,
    num_frames: int = 17,
    height: int = 32,
    width: int = 32,
    fps: float = 8,
) -> Tensor:
    """Return a clip of the facts, [T, 3, H, W] float32 in [0, 1].

    The same arguments give the same pixels.
    """
    scene = sample_scene(facts, seed)
    track = simulate(scene, num_frames, fps)
    frames = torch.from_numpy(draw(track, scene, height, width))
    return frames.permute(0, 3, 1, 2).float().div_(255.0)
