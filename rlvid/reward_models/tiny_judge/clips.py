"""The clips the tiny vision-language model learns from: rendered once, with what is where in them.

Letters: N clips, T shown frames, H W pixels, K numbers known of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rlvid.data.tiny_world.ensemble import actor_track
from rlvid.data.tiny_world.grammar import ATTRIBUTES
from rlvid.data.tiny_world.scene import PAN_SPEED, WORLD_SIZE
from rlvid.data.tiny_world.situations import Family, Situation, draw_situation, render_situation
from rlvid.models.tiny.vlm_layout import JudgeLayout

COLOURS, SHAPES = ATTRIBUTES["colour"], ATTRIBUTES["object"]
PER_COLOUR = 5 + len(SHAPES)
"""seen, x, y, velocity x and y, and the shape, of the object of one colour."""
NUM_KNOWN = len(COLOURS) * PER_COLOUR + 1
"""K: all colours, and the speed of the camera."""
_SPEED = 16.0
"""px / s that count as 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipPool:
    """Situations with their shown frames and the state of the world in each."""

    situations: tuple[Situation, ...]
    frames: Tensor
    """[N, T, 3, H, W] uint8."""
    known: Tensor
    """[N, T, K] float32; NaN for broken clips, where it is not known."""


def draw_pool(
    seeds: Sequence[int],
    split: Literal["train", "heldout"],
    layout: JudgeLayout,
    *,
    family: Family | None = None,
    alter: Callable[[Tensor], Tensor] | None = None,
    alter_frac: float = 0.0,
) -> ClipPool:
    """Return the clips of the seeds.

    Args:
        alter: changes a clip [T, 3, H, W] in [0, 1] as a generator's decoder would; applied to the
            first `alter_frac` of the clips.
    """
    situations = tuple(draw_situation(seed, split, family=family) for seed in seeds)
    height, width = layout.size
    shown = layout.indices(layout.num_frames)
    frames = torch.empty(len(seeds), len(shown), 3, height, width, dtype=torch.uint8)
    known = torch.full((len(seeds), len(shown), NUM_KNOWN), torch.nan)
    for index, situation in enumerate(situations):
        clip = render_situation(situation, num_frames=layout.num_frames, height=height, width=width)
        if alter is not None and index < alter_frac * len(seeds):
            clip = alter(clip)
        frames[index] = (clip[shown] * 255.0).round().to(torch.uint8)
        if not situation.breakage:
            known[index] = torch.from_numpy(state_of(situation, layout.num_frames)[shown])
    return ClipPool(situations=situations, frames=frames, known=known)


def state_of(
    situation: Situation, num_frames: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return [T, K] what is where in each frame of a clip that is not broken."""
    state = np.zeros((num_frames, NUM_KNOWN), dtype=np.float32)
    for actor in situation.actors:
        track, scene = actor_track(actor, num_frames=num_frames)
        colours = [(actor.facts["colour"], track.visible)]
        if actor.later_colour:
            later = np.arange(num_frames) >= actor.change_frame
            colours = [
                (actor.facts["colour"], track.visible & ~later),
                (actor.later_colour, track.visible & later),
            ]
        for colour, seen in colours:
            start = COLOURS.index(colour) * PER_COLOUR
            block = state[:, start : start + PER_COLOUR]
            block[:, 0] = seen
            block[:, 1:3] = track.screen_positions / WORLD_SIZE - 0.5
            block[:, 3:5] = track.velocities / _SPEED
            block[:, 5 + SHAPES.index(actor.facts["object"])] = 1.0
        state[:, -1] = scene.camera_speed / PAN_SPEED
    return state


def known_loss(predicted: Tensor, known: Tensor) -> Tensor:
    """Return the loss of predictions [B, T, K] of the state; broken clips count nothing.

    Whether a colour is seen is a logit, and so is each shape; all but the first counts where the
    colour is seen.
    """
    sure = ~torch.isnan(known).any(dim=2)
    predicted, known = predicted[sure].float(), known[sure]
    camera = (predicted[:, -1] - known[:, -1]).square().mean()
    guess = predicted[:, :-1].unflatten(1, (len(COLOURS), PER_COLOUR))
    truth = known[:, :-1].unflatten(1, (len(COLOURS), PER_COLOUR))
    seen = truth[..., 0]
    presence = functional.binary_cross_entropy_with_logits(guess[..., 0], seen)
    place = (guess[..., 1:3] - truth[..., 1:3]).abs().mean(dim=-1)
    # Sideways speeds are half as large as the others; both shall count alike.
    error = (guess[..., 3:5] - truth[..., 3:5]) * torch.tensor([2.0, 1.0])
    speed = error.square().mean(dim=-1)
    shape = functional.cross_entropy(
        guess[..., 5:].flatten(0, -2), truth[..., 5:].argmax(dim=-1).flatten(), reduction="none"
    ).view_as(seen)
    per_object = (8.0 * place + 2.0 * speed + shape) * seen
    loss: Tensor = presence + camera + per_object.sum() / seen.sum().clamp(min=1.0)
    return loss
