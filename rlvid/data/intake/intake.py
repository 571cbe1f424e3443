"""Real clips that are fit to train on, out of what the sources hold, and the count of the rest."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlvid.config.intake import IntakeConfig
from rlvid.data.clips import ClipShape
from rlvid.data.intake.drops import Drop, DropCounts, RefusedError
from rlvid.data.intake.measures import SeenHashes, TextArea, clip_hash, looks, motion
from rlvid.data.intake.normalise import Footage, normalise
from rlvid.data.intake.shots import find_shots
from rlvid.data.intake.sources import RawClip, check_source, read_source

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RealClip:
    """A real clip with its caption, at the wanted shape: the pair P_r V_r of GigaVideo-1."""

    name: str
    """`source:place` of the video it was cut from."""
    text: str
    video: Tensor
    """[T, 3, H, W] float32 in [0, 1], whole levels of 255."""
    digest: str
    """32 hex digits of blake2b over the uint8 pixels and the caption; see `clip_digest`."""
    measures: Mapping[str, float]
    """motion (per cent of the diagonal per second), aesthetic and its parts (in [0, 1]), text_area
    where measured, num_shots, and source_seconds, source_fps, source_height and source_width."""
    start_s: float
    """Where the clip begins in the source video."""


class Intake:
    """Reads the sources of a section and keeps what passes its filters.

    Raises:
        ValueError: no such source, or settings under which no clip could be kept.
    """

    def __init__(
        self, config: IntakeConfig, shape: ClipShape, text_area: TextArea | None = None
    ) -> None:
        self._config = config
        self._shape = shape
        self._text_area = text_area
        self._hashes = SeenHashes()
        self.counts = DropCounts()
        """Of the present or last pass over the sources."""
        _check_settings(config, shape, text_area)

    def clips(self) -> Iterator[RealClip]:
        """Yield the clips that are kept; see `outcomes`."""
        for outcome in self.outcomes():
            if isinstance(outcome, RealClip):
                yield outcome

    def outcomes(self) -> Iterator[RealClip | Drop]:
        """Yield what became of everything seen, in the order of the sources, one at a time.

        Every pass starts anew and gives the same. It ends early at `max_clips`.
        """
        self.counts, self._hashes = DropCounts(), SeenHashes()
        for source in self._config.sources:
            for item in read_source(source):
                self.counts.seen += 1
                outcome = self._judge(item) if isinstance(item, RawClip) else item
                if isinstance(outcome, Drop):
                    self.counts.dropped[outcome.reason] += 1
                    logger.debug("dropped %s: %s", outcome.name, outcome.reason)
                else:
                    self.counts.kept += 1
                yield outcome
                if self.counts.kept == self._config.max_clips:
                    return

    def _judge(self, raw: RawClip) -> RealClip | Drop:
        try:
            return self._take(raw)
        except RefusedError as refused:
            return Drop(raw.name, refused.reason, refused.detail)

    def _take(self, raw: RawClip) -> RealClip:
        text = _checked_caption(raw.text, self._config)
        footage = normalise(raw.data, self._shape, self._config)
        shots = find_shots(footage.frames, self._config.cut_threshold)
        start = _place_of_clip(shots, self._shape.num_frames)
        frames = np.ascontiguousarray(footage.frames[start : start + self._shape.num_frames])
        measures = self._measure(frames) | _source_measures(footage, len(shots))
        clip_bits = clip_hash(frames)
        self._check_duplicate(clip_bits)
        self._hashes.add(clip_bits, raw.name)
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
        return RealClip(
            name=raw.name,
            text=text,
            video=pixels.float().div_(255.0),
            digest=clip_digest(pixels, text),
            measures=measures,
            start_s=start / self._shape.fps,
        )

    def _measure(self, frames: npt.NDArray[np.uint8]) -> dict[str, float]:
        """Return the measures of a clip's pixels, each checked before the next is taken."""
        low, high = self._config.motion_range
        moved = motion(frames, self._shape.fps)
        if moved < low:
            raise RefusedError("static", f"expected motion of {low:g} or more, got {moved:.4g}")
        if moved > high:
            raise RefusedError(
                "too_much_motion", f"expected motion up to {high:g}, got {moved:.4g}"
            )
        seen = looks(frames)
        if seen.aesthetic < self._config.min_aesthetic:
            raise RefusedError(
                "low_aesthetic",
                f"expected {self._config.min_aesthetic:g} or more, got {seen.aesthetic:.4g}",
            )
        measures = {
            "motion": moved,
            "aesthetic": seen.aesthetic,
            "contrast": seen.contrast,
            "colourfulness": seen.colourfulness,
            "sharpness": seen.sharpness,
        }
        limit = self._config.max_text_area
        if self._text_area is not None and limit is not None:
            measures["text_area"] = _checked_share(self._text_area(frames))
            if measures["text_area"] > limit:
                raise RefusedError(
                    "text_overlay",
                    f"expected a share of {limit:g} or less, got {measures['text_area']:.4g}",
                )
        return measures

    def _check_duplicate(self, clip_bits: npt.NDArray[np.uint64]) -> None:
        limit = self._config.duplicate_distance
        if limit is None:
            return
        distance, name = self._hashes.nearest(clip_bits)
        if distance <= limit:
            raise RefusedError("duplicate", f"{distance:g} of 64 bits from the clip of {name!r}")


def clip_digest(pixels: Tensor, text: str) -> str:
    """Return the digest of a clip.

    Args:
        pixels: [T, 3, H, W] uint8.
    """
    digest = hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16)
    digest.update(text.encode())
    return digest.hexdigest()


def _checked_caption(text: str, config: IntakeConfig) -> str:
    """Return the caption without white space around it."""
    text = text.strip()
    if not text:
        raise RefusedError("empty_caption", "expected a caption, got white space")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON may hold half of a surrogate pair.
            raise RefusedError("not_utf8", f"character {error.start}: {error.reason}") from error
    if len(text) < config.min_caption_chars:
        raise RefusedError(
            "caption_too_short",
            f"expected {config.min_caption_chars} characters or more, got {len(text)}",
        )
    if len(text) > config.max_caption_chars:
        raise RefusedError(
            "caption_too_long",
            f"expected {config.max_caption_chars} characters or less, got {len(text)}",
        )
    return text


def _place_of_clip(shots: list[tuple[int, int]], num_frames: int) -> int:
    """Return the first frame of the clip: the middle of the longest shot, farthest from its ends.

    Of two equally long shots the earlier is taken.
    """
    start, stop = max(shots, key=lambda shot: shot[1] - shot[0])
    if stop - start < num_frames:
        raise RefusedError(
            "shots_too_short",
            f"expected a shot of {num_frames} frames, got at most {stop - start} in "
            f"{len(shots)} shots",
        )
    return start + (stop - start - num_frames) // 2


def _source_measures(footage: Footage, num_shots: int) -> dict[str, float]:
    return {
        "num_shots": float(num_shots),
        "source_seconds": footage.seconds,
        "source_fps": footage.fps,
        "source_height": float(footage.height),
        "source_width": float(footage.width),
    }


def _checked_share(share: float) -> float:
    if not 0.0 <= share <= 1.0:
        raise ValueError(
            f"text_area: returned {share!r} for a clip; expected a share in [0, 1]. It is a fault "
            "of the measurer, not of the clip."
        )
    return float(share)


def _check_settings(config: IntakeConfig, shape: ClipShape, text_area: TextArea | None) -> None:
    if not config.sources:
        raise ValueError(
            "intake.sources: nothing to read: expected one source or more, got none. Name folders, "
            "shards or data set files."
        )
    for source in config.sources:
        check_source(source)
    if config.max_text_area is not None and text_area is None:
        raise ValueError(
            f"intake.max_text_area: nothing measures text: expected a `text_area` given to Intake "
            f"with a limit, got {config.max_text_area:g} and none. Give one, or set it to null."
        )
    if shape.num_frames < 2 or shape.num_frames / shape.fps > config.max_seconds:
        raise ValueError(
            f"intake.max_seconds: no source could be long enough: expected at least the "
            f"{shape.num_frames} frames of a clip at {shape.fps:g} fps, two or more, got "
            f"{config.max_seconds:g} s. Raise it."
        )
