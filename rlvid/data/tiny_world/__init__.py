"""The tiny world: clips of one coloured shape under exact physics, described by one sentence.

Small enough for a model of a million parameters to learn on a CPU, and exact enough for a reward
to be checked against the truth: `render_clip` gives pixels, `track_of` what happened in them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from rlvid.data.tiny_world.breakages import BREAKAGES, breakages_for, get_breakage
from rlvid.data.tiny_world.draw import draw
from rlvid.data.tiny_world.grammar import all_facts, caption, parse, split_of
from rlvid.data.tiny_world.scene import sample_scene
from rlvid.data.tiny_world.simulate import Track, simulate
from rlvid.seeds import derive_seed

__all__ = [
    "BREAKAGES",
    "Track",
    "all_facts",
    "breakages_for",
    "caption",
    "parse",
    "render_clip",
    "split_of",
    "track_of",
]


def track_of(facts: Mapping[str, str], seed: int, *, num_frames: int = 17, fps: float = 8) -> Track:
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
    breakage: str | None = None,
) -> Tensor:
    """Return a clip of the facts, [T, 3, H, W] float32 in [0, 1].

    The same arguments give the same pixels. With `breakage`, a name of `BREAKAGES`, the clip is
    broken on purpose; ValueError when the breakage could not be seen in a clip of these facts.
    """
    broken = None if breakage is None else get_breakage(breakage, facts, num_frames)
    rng = np.random.default_rng(derive_seed(seed, "breakage", str(breakage), caption(facts)))
    shown = facts
    if broken is not None and broken.change_facts is not None:
        shown = broken.change_facts(facts, rng)
    scene = sample_scene(shown, seed)
    track = simulate(scene, num_frames, fps)
    if broken is not None and broken.change_track is not None:
        track = broken.change_track(scene, track, fps, rng)
    if broken is not None and broken.redraw is not None:
        frames = broken.redraw(scene, track, fps, rng, height, width)
    else:
        frames = draw(track, scene, height, width)
    if broken is not None and broken.change_frames is not None:
        frames = broken.change_frames(frames, rng)
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float().div_(255.0).contiguous()
