"""Whether a person is there in every frame and keeps the same body, by mediapipe.

mediapipe 0.10.21 is the last release that ships its models and needs numpy below 2, so the scorer
runs in an environment of its own: `launch/environment/mediapipe.sh` makes it, and the recipe names
its interpreter in `rewards.scorers.N.python`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.specialists.needs import MissingPartError

Floats = npt.NDArray[np.float64]

# Pairs of BlazePose landmarks: shoulders, hips, both sides of the trunk, upper and lower limbs.
_BONES = (
    (11, 12), (23, 24), (11, 23), (12, 24), (11, 13), (13, 15), (12, 14), (14, 16),
    (23, 25), (25, 27), (24, 26), (26, 28),
)  # fmt: skip


class FaceAndPose:
    """Share of frames with a person, times how constant that person's proportions are, in [0, 1].

        presence * exp(-mean over bones of (std / mean over frames) / wobble_scale)

    A person is a pose of BlazePose, or a face; bone lengths are in three dimensions and divided by
    their frame's mean, so walking towards the camera costs nothing.

    Sees: people who vanish, melt or change their build from frame to frame.
    Blind to: anything but the one most visible person, fingers, who it is, the prompt.
    Gamed by: a person who stands still. Meant for prompts about people in photo-like clips; on
    drawn ones it finds nobody and scores 0.
    """

    BLIND_TO = ("all but the most visible person", "fingers", "the prompt", "drawn people")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        num_frames: int = 8
        """Frames looked at, evenly over the clip; about 70 ms each on one core."""
        wobble_scale: float = 0.2
        """Variation of bone lengths that costs a factor e."""
        min_confidence: float = 0.5

    def __init__(self, config: Config) -> None:
        self._config = config
        solutions = _solutions()
        # Frames as single pictures: tracking would make a score depend on the clip before it.
        self._pose = solutions.pose.Pose(
            static_image_mode=True, min_detection_confidence=config.min_confidence
        )
        self._face = solutions.face_detection.FaceDetection(
            min_detection_confidence=config.min_confidence
        )
        self.clip_spec = ClipSpec(min_frames=2)
        self.version = "mediapipe 0.10.21"

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] -> [B] float32; the prompts are not read."""
        return torch.tensor([self.parts(video)["face_and_pose"] for video in videos])

    def parts(self, video: Tensor) -> Mapping[str, float]:
        """Return the score "face_and_pose" of [T, 3, H, W] and what it is made of."""
        count = min(self._config.num_frames, len(video))
        chosen = [int((n + 0.5) * len(video) / count) for n in range(count)]
        pixels = (video[chosen] * 255.0).round().clamp(0, 255).to(torch.uint8)
        frames = [np.ascontiguousarray(one.permute(1, 2, 0).cpu().numpy()) for one in pixels]
        bones = [self._bones(frame) for frame in frames]
        faces = [bool(self._face.process(frame).detections) for frame in frames]
        found = [one for one in bones if one is not None]
        present = [face or one is not None for face, one in zip(faces, bones, strict=True)]
        presence = float(np.mean(present))
        wobble = float((np.std(found, axis=0) / np.mean(found, axis=0)).mean()) if found else 0.0
        steadiness = float(np.exp(-wobble / self._config.wobble_scale))
        return {
            "face_and_pose": presence * steadiness,
            "presence": presence,
            "faces": float(np.mean(faces)),
            "steadiness": steadiness,
        }

    def _bones(self, frame: npt.NDArray[np.uint8]) -> Floats | None:
        """[H, W, 3] RGB -> bone lengths [12] with mean 1, None without a pose."""
        landmarks = self._pose.process(frame).pose_world_landmarks
        if landmarks is None:
            return None
        points = np.array([(one.x, one.y, one.z) for one in landmarks.landmark])
        first, second = np.array(_BONES).T
        lengths = np.linalg.norm(points[first] - points[second], axis=1)
        return np.asarray(lengths / lengths.mean())


def _solutions() -> Any:
    try:
        return importlib.import_module("mediapipe").solutions
    except (ImportError, AttributeError) as error:
        raise MissingPartError(
            f"face_and_pose: no mediapipe 0.10.21 in this environment ({error}). Run: bash "
            "launch/environment/mediapipe.sh, and set `python` of this scorer to its interpreter."
        ) from error
