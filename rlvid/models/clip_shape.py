"""The shape of a clip's latents, from numbers alone: no model is loaded, nor diffusers imported."""

from __future__ import annotations


def latent_shape(
    clip: tuple[int, int, int],
    *,
    channels: int,
    temporal: int,
    spatial: int,
    patch: tuple[int, int] = (1, 1),
) -> tuple[int, int, int, int]:
    """Return (C, F, H, W) of the latents of a clip.

    Args:
        clip: num_frames, height, width, in pixels.
        temporal: pixel frames behind the first that one latent frame stands for.
        spatial: pixels that one latent position is wide and high.
        patch: latent positions, high and wide, of a token of the transformer.

    Raises:
        ValueError: the clip does not divide.
    """
    num_frames, height, width = clip
    if (num_frames - 1) % temporal:
        raise ValueError(
            f"model.num_frames: expected a multiple of {temporal} plus 1, got {num_frames}. "
            f"Take {1 + (num_frames - 1) // temporal * temporal}."
        )
    for name, pixels, size in (("height", height, patch[0]), ("width", width, patch[1])):
        if pixels < 1 or pixels % (spatial * size):
            raise ValueError(
                f"model.{name}: expected a multiple of {spatial * size}, got {pixels}."
            )
    return channels, (num_frames - 1) // temporal + 1, height // spatial, width // spatial
