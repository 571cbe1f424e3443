"""What an image-to-video model is told of a clip that it trains on: the clip's own frames.

A clip of a set has no picture beside its caption, but it has a first frame and a last one, and a
model that goes on from a picture is trained on just these (Wan, arXiv:2503.20314).
"""

from __future__ import annotations

from torch import Tensor

from rlvid.condition import Condition
from rlvid.flow.prompt_condition import TakesMedia
from rlvid.media import PLACES
from rlvid.models.base import VideoModel


def needed_frames(model: VideoModel) -> tuple[str, ...]:
    """Return the media without which the model has no velocity; () of a text-to-video model.

    Raises:
        ValueError: it needs something that is no frame of the clip.
    """
    if not isinstance(model, TakesMedia):
        return ()
    beside = sorted(model.required_media - set(PLACES))
    if beside:
        raise ValueError(
            f"model.use: {type(model).__name__} needs {beside}, which no clip has in itself: "
            f"expected at most {sorted(PLACES)}. Train it on prompts that name them (grpo)."
        )
    return tuple(sorted(model.required_media))


def own_frames(model: VideoModel, clips: Tensor) -> Condition | None:
    """Return what the frozen encoders make of the frames that the model needs, a row for each clip.

    Args:
        clips: [B, T, 3, height, width] in [0, 1].

    Returns:
        To be joined with the condition of the captions; None of a model that needs no frame.
    """
    names = needed_frames(model)
    if not names or not isinstance(model, TakesMedia):
        return None
    frames = {name: clips[:, PLACES[name]].to(model.device) for name in names}
    return model.encode_media(frames, clips.shape[1])
