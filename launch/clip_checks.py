"""Checks that the recipe's clips are of a shape that the model has, and was trained on."""

from __future__ import annotations

import logging

from rlvid.config import ModelConfig
from rlvid.launch.folder_parts import is_wan
from rlvid.launch.model_size import latent_shape
from rlvid.models import MODELS
from rlvid.models.native import NativeRange
from rlvid.plugins import resolve

logger = logging.getLogger(__name__)


def check_clip(model: ModelConfig) -> None:
    """Refuse a clip that does not divide into latents and tokens; warn of one outside of NATIVE.

    Wan's shapes are numbers of its folder; those of other families take a forward to know, which
    `rlvid plan` and `rlvid run --dry-run` do.

    Raises:
        ValueError: the clip does not divide.
    """
    if is_wan(model):
        latent_shape(model)
    warning = outside_native(model)
    if warning:
        logger.warning(warning)


def outside_native(model: ModelConfig) -> str:
    """Return a warning where the clip lies outside of what the family was trained on, else "".

    A family may have `NATIVE`, a `NativeRange`. It is not that of path tiny, whose sizes are its
    own.

    Raises:
        ValueError: there is no such family.
    """
    family = resolve(model.use, MODELS, where="model.use")
    native: NativeRange | None = getattr(family, "NATIVE", None)
    if native is None or model.path == "tiny":
        return ""
    found = native.outside(model.num_frames, model.height, model.width)
    if not found:
        return ""
    return f"model: {' and '.join(found)} lie outside what {model.use} was trained on"
