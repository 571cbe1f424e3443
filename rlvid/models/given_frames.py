"""Frames that a model is given beside the text, and the velocity of a first frame that it holds.

A held frame needs no place of its own in the sampler. It is an element of the latents whose
distribution is one point, z, and of such an element the velocity is known: at noise level sigma

    x = (1 - sigma) z + sigma noise,    velocity = noise - z = (x - z) / sigma.

That is what `velocity` says for the first latent frame, whatever the transformer says there. So the
ODE leads from noise to z, and so does the SDE, whose last step is deterministic: the video begins
with the given frame up to rounding. The transformer is shown z and never sees the noise that is
added there on the way. Every policy has this same velocity, hence the same transition: log-ratios,
KL and gradients are exactly those of the other frames, and only the number of elements by which
they are divided counts the frame.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.flow.prompt_condition import TakesMedia
from rlvid.flow.sde import per_row
from rlvid.media import PLACES
from rlvid.models.video_vae import VideoVae

GREY = 0.5
"""Of [0, 1]: 0 of a VAE's own range, which diffusers' pipelines take for no frame."""
FIRST_FRAME_LATENTS = "first_frame_latents"
"""Name of a condition's tensor [B, C, 1, H, W] float32, of the scale that the transformer takes."""


def encode_first_frame(vae: VideoVae, pictures: Tensor) -> Tensor:
    """[B, 3, height, width] in [0, 1] -> [B, C, 1, H, W] float32 of unit scale.

    One by one, so that a row does not depend on what it is batched with.
    """
    return torch.cat([vae.encode(frame) for frame in pictures[:, None, None]])


def grey_but_for(media: Mapping[str, Tensor], num_frames: int) -> Tensor:
    """Return clips [B, T, 3, height, width], grey but for their frames that are given.

    Args:
        media: pictures [B, 3, height, width] in [0, 1]; those of `rlvid.media.PLACES` are frames.
        num_frames: T.

    Raises:
        ValueError: a first and a last frame of a clip that has one.
    """
    given = {name: picture for name, picture in media.items() if name in PLACES}
    if len(given) > 1 and num_frames == 1:
        raise ValueError("model.num_frames: a first and a last frame need at least 5, got 1.")
    one = next(iter(media.values()))
    clips = one.new_full((one.shape[0], num_frames, *one.shape[-3:]), GREY)
    for name, picture in given.items():
        clips[:, PLACES[name]] = picture
    return clips


def given_tensor(model: TakesMedia, condition: Condition, name: str) -> Tensor:
    """Return what a condition says of the frames that `model` needs.

    Raises:
        ValueError: it says nothing of them.
    """
    if name not in set(condition):
        raise ValueError(
            f"{type(model).__name__}: the condition is of a text alone: expected that of "
            f"{sorted(model.required_media)} joined to it. Give the prompt, or the pair of clips, "
            "its media; sft takes the clip's own frames."
        )
    return condition[name]


def show_first_frame(latents: Tensor, first: Tensor) -> Tensor:
    """Return what the transformer sees: `latents` with `first` [B, C, 1, H, W] in its place."""
    return torch.cat([first, latents[:, :, 1:]], dim=2)


def hold_first_frame(velocity: Tensor, latents: Tensor, first: Tensor, sigma: Tensor) -> Tensor:
    """Return `velocity` [B, C, F, H, W], in its first frame the one that leads to `first`.

    Args:
        latents: [B, C, F, H, W] at noise level `sigma` [B].
    """
    to_first = (latents[:, :, :1] - first) / per_row(sigma.float(), latents)
    return torch.cat([to_first, velocity[:, :, 1:]], dim=2)
