"""Whether the camera moves as the prompt asks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.critics.global_motion import CameraPath, camera_path
from rlvid.rewards.critics.tracking import to_frames

LABELS = (
    "static",
    "pan_left",
    "pan_right",
    "tilt_up",
    "tilt_down",
    "zoom_in",
    "zoom_out",
    "roll_left",
    "roll_right",
)
"""Roll right: the camera turns clockwise, so the picture turns counter-clockwise."""

_SIDE = r"(?:\s+(?:slowly|slightly|smoothly|gently))?(?:\s+to(?:wards?)?)?(?:\s+the)?\s+"
_PATTERNS: Mapping[str, str] = {
    "static": r"\b(?:static|fixed|still|stationary|locked)\s+(?:camera|shot)\b"
    r"|\bcamera\s+(?:\w+\s+)?(?:static|fixed|still|stationary)\b"
    r"|\bcamera\s+does\s+not\s+move\b",
    "pan_left": rf"\bpan(?:s|ning)?{_SIDE}left\b",
    "pan_right": rf"\bpan(?:s|ning)?{_SIDE}right\b",
    "tilt_up": r"\btilt(?:s|ing)?(?:\s+\w+ly)?\s+up(?:wards?)?\b",
    "tilt_down": r"\btilt(?:s|ing)?(?:\s+\w+ly)?\s+down(?:wards?)?\b",
    "zoom_in": r"\bzoom(?:s|ing)?(?:\s+\w+ly)?\s+in\b",
    "zoom_out": r"\bzoom(?:s|ing)?(?:\s+\w+ly)?\s+out\b",
    "roll_left": r"\bcamera\s+rolls?\s+(?:to\s+the\s+)?(?:left|counter-?clockwise)\b",
    "roll_right": r"\bcamera\s+rolls?\s+(?:to\s+the\s+)?(?:right|clockwise)\b",
}
_FACTS: Mapping[str, str] = {
    "still": "static",
    "pans left": "pan_left",
    "pans right": "pan_right",
}
"""Values of the tiny world's fact "camera"."""


class CameraMotionCritic:
    """How well the camera's motion is the one that the prompt asks for, in [0, 1].

    Half is the verdict of VBench-2.0's camera motion (arXiv:2503.21755): the middles of the four
    edges, followed from the first frame to the last, give a label where they move by more than
    `threshold` of the short side, and the asked label must be among them. Where it follows points
    with CoTracker, this chains similarity transforms fitted to tracked corners by RANSAC. The
    other half is how much of all motion is the asked one, so that there is something to climb.

    A prompt that asks for no camera motion scores 1, whatever the clip: within a group that
    prefers nobody. `unasked` makes it missing, or taken for a wish for a static camera.

    Gamed by: a background without texture, which counts as static; a textured object that fills
    the view and moves.
    """

    CLAIMS = (
        "wrong_camera",
        "camera_static",
        "camera_pan",
        "camera_tilt",
        "camera_zoom",
        "camera_roll",
    )
    GRADED = ("camera_drift",)
    BLIND_TO = (
        "the speed of a motion that has the right kind",
        "orbits, and a dolly as against a zoom",
        "motion that returns to where it began",
        "a motion hidden behind a large moving object or on a background without texture",
    )

    WORKING_BYTES = 24.0

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        threshold: float = 0.005
        """Share of the short side by which an edge must move over the clip to count as moving."""
        min_pixels: float = 0.5
        """The least threshold in pixels: 0.005 of 32 px is below what can be tracked."""
        strict: bool = False
        """Score the verdict alone, 0 or 1."""
        unasked: Literal["neutral", "missing", "static"] = "neutral"
        """What a prompt without a camera motion gets: 1, NaN, or the score of "static"."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.clip_spec = ClipSpec(min_frames=2)

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] and B prompts -> [B] float32; NaN only with `unasked: missing`."""
        pairs = zip(videos, prompts, strict=True)
        return torch.tensor([self._score(video, prompt) for video, prompt in pairs])

    def _score(self, video: Tensor, prompt: Prompt) -> float:
        asked = asked_labels(prompt)
        if not asked:
            if self._config.unasked != "static":
                return 1.0 if self._config.unasked == "neutral" else float("nan")
            asked = ("static",)
        short = min(video.shape[-2:])
        path = camera_path(to_frames(video))
        values = [self.parts(path, label, short)["camera_motion"] for label in asked]
        return sum(values) / len(values)

    def parts(self, path: CameraPath, asked: str, short_side: int) -> Mapping[str, float]:
        """Return the score "camera_motion" and its halves "verdict" and "share"."""
        threshold = max(self._config.threshold, self._config.min_pixels / short_side)
        verdict = float(asked in labels_of(path, threshold))
        share = _share(path, asked, threshold)
        score = verdict if self._config.strict else 0.5 * verdict + 0.5 * share
        return {"camera_motion": score, "verdict": verdict, "share": share}


def asked_labels(prompt: Prompt) -> tuple[str, ...]:
    """Return what the prompt's fact "camera", or else its text, asks of the camera."""
    fact = prompt.facts.get("camera", "")
    if fact in _FACTS:
        return (_FACTS[fact],)
    if fact in LABELS:
        return (fact,)
    text = prompt.text.lower()
    return tuple(label for label, pattern in _PATTERNS.items() if re.search(pattern, text))


def labels_of(path: CameraPath, threshold: float) -> frozenset[str]:
    """Return the labels of a motion, several when it is mixed; `threshold` of the short side.

    Both ends of one axis must move past the threshold: the same way for pan and tilt, apart or
    together for zoom, and opposite ways across the axis for roll.
    """
    top, bottom, left, right = path.edges
    names = {
        "pan_right": _past(-top[0], -bottom[0], threshold) or _past(-left[0], -right[0], threshold),
        "pan_left": _past(top[0], bottom[0], threshold) or _past(left[0], right[0], threshold),
        "tilt_up": _past(top[1], bottom[1], threshold) or _past(left[1], right[1], threshold),
        "tilt_down": _past(-top[1], -bottom[1], threshold) or _past(-left[1], -right[1], threshold),
        "zoom_in": _past(-top[1], bottom[1], threshold) or _past(-left[0], right[0], threshold),
        "zoom_out": _past(top[1], -bottom[1], threshold) or _past(left[0], -right[0], threshold),
        "roll_left": _past(top[0], -bottom[0], threshold) or _past(-left[1], right[1], threshold),
        "roll_right": _past(-top[0], bottom[0], threshold) or _past(left[1], -right[1], threshold),
    }
    found = frozenset(name for name, holds in names.items() if holds)
    return found or frozenset({"static"})


def _past(first: float, second: float, threshold: float) -> bool:
    return bool(first > threshold and second > threshold)


def _share(path: CameraPath, asked: str, threshold: float) -> float:
    """Share of the asked motion in all motion, in [0, 1]; for "static", how little there is."""
    motion = {
        "pan_right": -path.right,
        "pan_left": path.right,
        "tilt_up": path.down,
        "tilt_down": -path.down,
        "zoom_in": path.outward,
        "zoom_out": -path.outward,
        "roll_left": path.clockwise,
        "roll_right": -path.clockwise,
    }
    total = sum(abs(value) for value in motion.values()) / 2
    if asked == "static":
        return 1.0 / (1.0 + total / (2 * threshold))
    return max(0.0, motion[asked]) / (total + threshold)
