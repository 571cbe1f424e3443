"""From prompts, with their pictures and clips, to what guidance needs: a condition and a negative.

Rollout, training and evaluation ask here, so that all of them are told the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rlvid.condition import Condition, concatenate
from rlvid.media import CLIPS, digest_media, read_media
from rlvid.records import Prompt
from rlvid.seeds import prompt_id

if TYPE_CHECKING:
    from rlvid.models.base import VideoModel

ClipSize = tuple[int, int, int]
"""(num_frames, height, width) in pixels."""

_KEPT = 64
"""Conditions of media kept for a model; of Wan 14B at 81x480x832 one takes 10 MB."""


@runtime_checkable
class TakesMedia(Protocol):
    """What a video model has beside the rest if it is told more than a text."""

    media: frozenset[str]
    """Names of `rlvid.media.SUFFIXES` that it takes."""
    required_media: frozenset[str]
    """Those of them without which it has no velocity."""

    def clip_size(self, latent_shape: Sequence[int]) -> ClipSize:
        """Return the pixels that latents of shape (C, F, H, W) stand for."""
        ...

    def encode_media(self, media: Mapping[str, Tensor], num_frames: int) -> Condition:
        """Return what the frozen encoders make of media, to be joined with the text's.

        Args:
            media: pictures [B, 3, height, width] and clips [B, T, 3, height, width] in [0, 1].
            num_frames: of the video to be made.
        """
        ...


_kept: WeakKeyDictionary[TakesMedia, OrderedDict[tuple[str, ClipSize], Condition]] = (
    WeakKeyDictionary()
)
"""Of each model, what was made of the media of a prompt: its id has their digests."""


def prompt_condition(
    model: VideoModel,
    prompts: Sequence[Prompt],
    latent_shape: Sequence[int],
    *,
    encode_prompts: Callable[[Sequence[str]], Condition] | None = None,
) -> tuple[Condition, Condition]:
    """Return the condition of B prompts, and the negative that guidance starts from.

    The negative is the empty text, of one row; with media it is told them as well, of B rows, as in
    diffusers' WanImageToVideoPipeline: guidance is away from other texts, not from the picture.

    Args:
        latent_shape: (C, F, H, W) of the clips.
        encode_prompts: in place of the model's own; a cache.

    Raises:
        ValueError: the model needs media that a prompt has not, or takes none that it has; prompts
            of several kinds; a file is missing, damaged, or another than when the set was read.
    """
    encode = encode_prompts or model.encode_prompts
    positive, negative = encode([prompt.model_text for prompt in prompts]), encode([""])
    media = _media_condition(model, prompts, latent_shape)
    if media is None:
        return positive, negative
    return positive | media, negative.expand(len(prompts)) | media


def canary_condition(model: VideoModel, text: str, latent_shape: Sequence[int]) -> Condition:
    """Return the condition of a text, with grey pictures where the model needs some.

    For a canary, which asks what the weights are: any fixed input serves, but all must be asked the
    same.
    """
    condition = model.encode_prompts([text])
    if not isinstance(model, TakesMedia) or not model.required_media:
        return condition
    size = model.clip_size(latent_shape)
    grey = {name: _grey(name, size).to(model.device) for name in model.required_media}
    return condition | model.encode_media(grey, size[0])


def _media_condition(
    model: VideoModel, prompts: Sequence[Prompt], latent_shape: Sequence[int]
) -> Condition | None:
    """Return the condition of the prompts' media, a row for each; None where they have none."""
    for prompt in prompts:
        check_prompt_media(model, prompt)
    kinds = {tuple(sorted(prompt.media)) for prompt in prompts}
    if len(kinds) > 1:
        raise ValueError(
            f"prompts: some have other media than others, {sorted(kinds)}: expected the same in "
            "one batch. Keep them in sets of their own."
        )
    if not isinstance(model, TakesMedia) or kinds <= {()}:
        return None
    size = model.clip_size(latent_shape)
    return concatenate([_kept_condition(model, prompt, size) for prompt in prompts])


def check_prompt_media(model: VideoModel, prompt: Prompt) -> None:
    """Raise ValueError unless the model takes the prompt's media and needs no more."""
    takes, needs = frozenset[str](), frozenset[str]()
    if isinstance(model, TakesMedia):
        takes, needs = model.media, model.required_media
    missing, unknown = sorted(needs - set(prompt.media)), sorted(set(prompt.media) - takes)
    if missing or unknown:
        raise ValueError(
            f"prompt {prompt.text!r}: media {sorted(prompt.media)}: {type(model).__name__} needs "
            f"{sorted(needs)} and takes {sorted(takes)}. Name them under 'media' in the set's "
            ".jsonl file, or set model.use and model.path to a model that takes these."
        )


def _kept_condition(model: TakesMedia, prompt: Prompt, size: ClipSize) -> Condition:
    """Return the condition of a prompt's media, one row; the newest ones are kept."""
    kept = _kept.setdefault(model, OrderedDict())
    key = (prompt.prompt_id, size)
    if key not in kept:
        # Not inference tensors even when the caller is in inference mode: a kept one could not take
        # part in a later training forward.
        with torch.inference_mode(False), torch.no_grad():
            kept[key] = model.encode_media(_read(prompt, size), size[0])
        if len(kept) > _KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


def _read(prompt: Prompt, size: ClipSize) -> dict[str, Tensor]:
    """Return the prompt's media, [1, ...] each, the very ones that its id was made of."""
    num_frames, height, width = size
    try:
        digests = {name: digest_media(name, path) for name, path in prompt.media.items()}
        pixels = {
            name: read_media(name, path, num_frames=num_frames, height=height, width=width)[None]
            for name, path in prompt.media.items()
        }
    except ValueError as error:
        raise ValueError(f"prompt {prompt.text!r}: media.{error}") from error
    if prompt.prompt_id != prompt_id(prompt.text, digests):
        raise ValueError(
            f"prompt {prompt.text!r}: media: {sorted(prompt.media.values())} are other files than "
            f"those of prompt_id {prompt.prompt_id}: expected the ones that the prompt set was "
            "read with. Put them back, or start a new run."
        )
    return pixels


def _grey(name: str, size: ClipSize) -> Tensor:
    num_frames, height, width = size
    shape = (1, num_frames, 3, height, width) if name in CLIPS else (1, 3, height, width)
    return torch.full(shape, 0.5)
