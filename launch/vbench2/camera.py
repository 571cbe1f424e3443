"""Camera_Motion without CoTracker: the labels of `rewards.critics.camera_motion`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlvid.evaluation.vbench2.items import Item
from rlvid.launch.vbench2.specialists import NotMeasuredError
from rlvid.launch.vbench2.work import read_frames
from rlvid.rewards.critics.camera_motion import LABELS, CameraMotionCritic, labels_of
from rlvid.rewards.critics.global_motion import camera_path
from rlvid.rewards.critics.tracking import to_frames


class CameraPathSpecialist:
    """Chains similarity transforms fitted to tracked corners, where the benchmark follows a grid
    of points with CoTracker; orbits and oblique views are beyond it and stay unjudged."""

    def measure(self, videos: Sequence[Path], item: Item) -> Mapping[str, Any]:
        if item.label not in LABELS:
            raise NotMeasuredError(
                f"camera_path: cannot tell {item.label!r}; it knows {', '.join(LABELS)}"
            )
        frames, _ = read_frames(videos[0])
        if len(frames) < 2:
            raise NotMeasuredError("camera_path: a single frame has no motion")
        settings = CameraMotionCritic.Config()
        short = min(frames.shape[1:3])
        threshold = max(settings.threshold, settings.min_pixels / short)
        video = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255.0
        return {"found": sorted(labels_of(camera_path(to_frames(video)), threshold))}
