"""The plain worker that turns a group's latents into clips, once for all scorers.

Letters: G clips in a group, T pixel frames, H W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from rlvid.config.model import ModelConfig
from rlvid.observability.memory_peak import peak_mib
from rlvid.records import Prompt, RolloutGroup
from rlvid.rewards.critics.guards import clip_guards

Frames = np.ndarray[Any, np.dtype[np.uint8]]
"""[G, T, H, W, 3] uint8: what a person would see, a quarter of the floats' size."""
MAX_GROUP_PIXELS = 2**31
"""Of the files of one group, all frames together: 28 clips of 81x720x1280, 6.4 GB as RGB."""
Decoder = Callable[[Tensor], Tensor]
"""latents [B, C, F, H, W] -> videos [B, T, 3, H, W] float32 in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipInfo:
    """What the driver knows of a group's clips; the frames never pass through it."""

    group_id: str
    prompt: Prompt
    indices: tuple[int, ...]
    """[G] place of each clip in its group."""
    digests: tuple[str, ...]
    """[G] xxh3-128 of shape and bytes, hex."""
    num_frames: int
    height: int
    width: int
    fps: float
    decode_s: float
    peak_mib: float = 0.0
    """Most memory the decoder's process had held by then; 0 of clips that were given."""
    guards: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Guard to [G] values, of groups that were decoded from latents."""


class DecodeWorker:
    """Holds the model's decoder; it remembers nothing between groups."""

    def __init__(self, decode: Decoder | None, *, fps: float) -> None:
        """`decode` None: this pool is given clips and files, never latents."""
        self._decode = decode
        self._fps = fps

    def decode(self, group: RolloutGroup) -> tuple[Frames, ClipInfo]:
        """Decode every rollout of the group."""
        if self._decode is None:
            raise ValueError(
                "rewards: a group of latents reached a pool that has no model to decode it; "
                "open the pool with the recipe's model section, or submit clips"
            )
        started = time.perf_counter()
        with torch.no_grad():
            latents = torch.stack([rollout.latents for rollout in group.rollouts])
            videos = self._decode(latents).float()
            levels = (videos * 255.0).round().clamp(0, 255).to(torch.uint8)
            frames = levels.permute(0, 1, 3, 4, 2).contiguous().cpu().numpy()
        guards = [clip_guards(clip) for clip in frames]
        info = describe_clips(
            frames,
            group.prompt,
            fps=self._fps,
            group_id=group.group_id,
            indices=[rollout.index for rollout in group.rollouts],
            started=started,
        )
        by_name = {name: tuple(clip[name] for clip in guards) for name in guards[0]}
        return frames, replace(info, guards=by_name, peak_mib=peak_mib())

    def decode_files(
        self, files: Sequence[bytes], prompt: Prompt, group_id: str
    ) -> tuple[Frames, ClipInfo]:
        """Decode MP4 files of one size and rate, a group.

        Raises:
            ValueError: a file is no video, too large, or not of the first one's size and rate.
        """
        from rlvid.data.video_files import MAX_PIXELS, decode_mp4

        started = time.perf_counter()
        clips = []
        left = MAX_GROUP_PIXELS
        for data in files:
            clip, fps = decode_mp4(data, max_pixels=min(left, MAX_PIXELS))
            clips.append((clip, fps))
            left -= clip.size // 3
        kinds = {(clip.shape, fps) for clip, fps in clips}
        if len(kinds) != 1:
            raise ValueError(
                f"group {group_id}: expected clips of one size and frame rate, got "
                + ", ".join(f"{shape} at {fps:g} fps" for shape, fps in sorted(kinds))
            )
        frames = np.stack([clip for clip, _ in clips])
        return frames, describe_clips(
            frames, prompt, fps=clips[0][1], group_id=group_id, started=started
        )


def open_decode_worker(model: ModelConfig | None) -> DecodeWorker:
    """Load the model whose decoder turns latents into clips; None loads nothing."""
    if model is None:
        return DecodeWorker(None, fps=0.0)
    from rlvid.models import load_decoder

    return DecodeWorker(load_decoder(model), fps=model.fps)


def describe_clips(
    frames: Frames,
    prompt: Prompt,
    *,
    fps: float,
    group_id: str,
    indices: Sequence[int] | None = None,
    started: float | None = None,
) -> ClipInfo:
    """Return what the driver keeps of [G, T, H, W, 3] uint8 frames.

    Args:
        indices: 0 to G-1 when None.
        started: `time.perf_counter` when decoding began.

    Raises:
        ValueError: another shape or type.
    """
    if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[-1] != 3 or not frames.size:
        raise ValueError(
            f"group {group_id}: expected frames uint8 [G, T, H, W, 3], got {frames.dtype} "
            f"{list(frames.shape)}"
        )
    digests = tuple(clip_digest(clip) for clip in frames)
    return ClipInfo(
        group_id=group_id,
        prompt=prompt,
        indices=tuple(range(len(frames)) if indices is None else indices),
        digests=digests,
        num_frames=frames.shape[1],
        height=frames.shape[2],
        width=frames.shape[3],
        fps=fps,
        decode_s=0.0 if started is None else time.perf_counter() - started,
    )


def clip_digest(clip: Frames) -> str:
    """Return xxh3-128 over the shape and bytes of one clip, 32 hex digits."""
    hasher = xxhash.xxh3_128(f"{clip.shape}|".encode())
    hasher.update(np.ascontiguousarray(clip).reshape(-1))
    return str(hasher.hexdigest())


def as_tensor(frames: Frames) -> Tensor:
    """[G, T, H, W, 3] -> [G, T, 3, H, W] uint8, for a log or report."""
    return torch.from_numpy(frames.copy()).permute(0, 1, 4, 2, 3).contiguous()
