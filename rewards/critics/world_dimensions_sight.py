"""What the rules of the tiny world's dimensions see of a clip, tracked once for all of them.

Every dimension is a scorer of its own, and several share a process: the latest clips are kept by
their bytes, so that whoever asks second waits for a digest and not for the tracking.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

import xxhash
from torch import Tensor

from rlvid.data.tiny_world.scene import GROUND_Y
from rlvid.records import Prompt
from rlvid.rewards.critics.adherence import facts_of
from rlvid.rewards.critics.objects import ObjectClip, follow_objects
from rlvid.rewards.critics.tracking import Floats, TrackedClip, to_frames, track

MAX_BYTES = 64 << 20
"""Of the masks kept: 900 clips of the usual 17x32x32, 15 of 81x128x128. The pool gives a batch of
clips to one scorer after the other, so a few batches are enough."""
SURE = 0.1
"""Confidence from which the object counts as seen in a frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What was tracked in one clip; the caption has no part in it."""

    clip: TrackedClip
    """The one object and the camera."""
    objects: ObjectClip
    """All objects and the obstacles."""

    @property
    def has_object(self) -> bool:
        return bool(self.clip.is_seen and self.objects.tracks)


class Sights:
    """Tracks clips and keeps the latest, at most `max_bytes` of masks; threads may share it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, Sight] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, video: Tensor) -> Sight:
        """[T, 3, H, W] float in [0, 1] -> what is seen in it."""
        key = _digest(video)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        frames = to_frames(video)
        sight = Sight(clip=track(frames), objects=follow_objects(frames, "colour"))
        with self._lock:
            if key not in self._kept:  # another thread may have been faster
                self._kept[key] = sight
                self._num_bytes += sight.clip.coverage.nbytes
            while self._num_bytes > self._max_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._num_bytes -= oldest.clip.coverage.nbytes
        return sight


SIGHTS = Sights(MAX_BYTES)
"""Of this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One clip and its caption, as a rule sees them."""

    video: Tensor
    """[T, 3, H, W]."""
    sight: Sight
    facts: Mapping[str, str]
    fps: int

    @property
    def clip(self) -> TrackedClip:
        return self.sight.clip

    @property
    def heights(self) -> Floats:
        """[T] world px of the object above where it would lie on the ground."""
        return GROUND_Y - self.clip.base - self.clip.world[:, 1]


def look(video: Tensor, prompt: Prompt, fps: int) -> Seen:
    """Return [T, 3, H, W] and its caption for the rules.

    Raises:
        ValueError: a prompt outside the tiny world.
    """
    return Seen(video=video, sight=SIGHTS.of(video), facts=facts_of(prompt), fps=fps)


def _digest(video: Tensor) -> bytes:
    """xxh3-128 of shape, type and bytes."""
    pixels = video.detach().cpu().contiguous()
    digest = xxhash.xxh3_128(f"{tuple(pixels.shape)} {pixels.dtype}".encode())
    digest.update(pixels.numpy())
    return bytes(digest.digest())
