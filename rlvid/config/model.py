"""The `model` section: which video model, at which size."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlvid.config.base import Section


class ModelConfig(Section):
    """A diffusers pipeline folder and the clip it is asked for."""

    path: str = "tiny"
    """Folder in diffusers layout, or "tiny": the model that ships with rlvid."""
    use: str = "wan"
    """Model family, a short name or `package.module:Class`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the transformer; sampling arithmetic is float32 always."""
    device: str = "auto"
    """A torch device, or "auto": cuda where the process was given one, else cpu."""
    text_encoder_device: str | None = None
    """Torch device of the text encoders, or "auto"; None: `device`. "cpu" keeps them in RAM, 11 GB
    of each GPU for Wan 2.1 in bfloat16; a prompt is encoded once and kept."""
    num_frames: int = Field(default=17, ge=1)
    height: int = Field(default=32, ge=8)
    """Pixels."""
    width: int = Field(default=32, ge=8)
    """Pixels."""
    fps: int = Field(default=8, ge=1)
    attention_backend: str | None = None
    """Name for diffusers' attention dispatcher ("flash", "xformers", ...); None: its default."""
    vae_tile: int | None = Field(default=None, ge=32, multiple_of=4)
    """Pixels of the side of the tiles in which the VAE decodes and encodes larger clips, which
    overlap by a quarter and are blended: less memory, frames that differ a little along the seams.
    The same for all who look at clips, so that a reward is of what is shown. None: whole clips."""
