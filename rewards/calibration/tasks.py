"""Names of what scorers can be calibrated on, besides the breakages of the tiny world.

As strings, so that listing them imports none. To add one, write the function and a row here, and
name it in the scorer's class attribute:

- `CLAIMS: tuple[str, ...]`, breakages or `TASKS` whose true clips must score above the broken ones:
  AUC at least `calibrate.REQUIRED_AUC` on held-out clips.
- `GRADED: tuple[str, ...]`, `GRADED_TASKS` along which the score must fall as the strength rises:
  rank correlation at most `-calibrate.REQUIRED_RHO`.
- `BLIND_TO: tuple[str, ...]`, in words, for the report.
"""

from __future__ import annotations

from typing import Protocol, cast

from torch import Tensor

from rlvid.plugins import resolve
from rlvid.rewards.calibration.clip_sets import ClipSet

TASKS: dict[str, str] = {
    "rendered_text": "rlvid.rewards.specialists.tasks:rendered_text",
    "blur": "rlvid.rewards.specialists.tasks:blur",
    "scene_drift": "rlvid.rewards.specialists.tasks:scene_drift",
    "wrong_topic": "rlvid.rewards.specialists.tasks:wrong_topic",
    "pair_pass_through": "rlvid.rewards.critics.object_tasks:pass_through",
    "pair_momentum_gain": "rlvid.rewards.critics.object_tasks:momentum_gain",
    "pair_energy_gain": "rlvid.rewards.critics.object_tasks:energy_gain",
    "pair_vanish_one": "rlvid.rewards.critics.object_tasks:vanish_one",
    "pair_appear_one": "rlvid.rewards.critics.object_tasks:appear_one",
    "pair_merge_two": "rlvid.rewards.critics.object_tasks:merge_two",
    "pair_swap_colours": "rlvid.rewards.critics.object_tasks:swap_colours",
    "pair_float_one": "rlvid.rewards.critics.object_tasks:float_one",
    "camera_static": "rlvid.rewards.critics.camera_tasks:static",
    "camera_pan": "rlvid.rewards.critics.camera_tasks:pan",
    "camera_tilt": "rlvid.rewards.critics.camera_tasks:tilt",
    "camera_zoom": "rlvid.rewards.critics.camera_tasks:zoom",
    "camera_roll": "rlvid.rewards.critics.camera_tasks:roll",
}
"""Name -> "module:function", a `Task`."""

GRADED_TASKS: dict[str, str] = {
    "gravity_factor": "rlvid.rewards.critics.object_tasks:gravity_factor",
    "camera_drift": "rlvid.rewards.critics.camera_tasks:drift",
    "flicker_strength": "rlvid.rewards.critics.picture_tasks:flicker_strength",
    "warp_strength": "rlvid.rewards.critics.picture_tasks:warp_strength",
    "jitter_strength": "rlvid.rewards.critics.picture_tasks:jitter_strength",
    "grid_strength": "rlvid.rewards.critics.picture_tasks:grid_strength",
    "blur_strength": "rlvid.rewards.critics.picture_tasks:blur_strength",
    "noise_strength": "rlvid.rewards.critics.picture_tasks:noise_strength",
}
"""Name -> "module:function", a `GradedTask`."""


class Task(Protocol):
    """Draws true and broken clips; the same arguments give the same pixels."""

    def __call__(self, num_clips: int, *, seed: int, split: str) -> tuple[ClipSet, ClipSet]:
        """Return (true, broken), `num_clips` of each.

        Args:
            split: "train" for tuning, "heldout" for the report; they share no clip.
        """
        ...


class GradedTask(Protocol):
    """Draws clips that are broken by a known amount."""

    def __call__(self, num_clips: int, *, seed: int, split: str) -> tuple[ClipSet, Tensor]:
        """Return `num_clips` clips and their strengths [N], larger is worse."""
        ...


def get_task(name: str) -> Task:
    """Return the task; ValueError lists the known ones."""
    return cast(Task, resolve(name, TASKS, where="calibrate: task"))


def get_graded_task(name: str) -> GradedTask:
    """Return the graded task; ValueError lists the known ones."""
    return cast(GradedTask, resolve(name, GRADED_TASKS, where="calibrate: graded task"))
