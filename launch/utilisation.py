"""MFU of rollouts and learner in a step: counts of the metrics row, FLOPs of the recipe's model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlvid.config import Recipe
from rlvid.launch.model_size import read_row_flops
from rlvid.observability.flops import RowFlops
from rlvid.observability.mfu import TERA, mfu_metrics, total_peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilisation:
    """Made by `open_utilisation`."""

    flops: RowFlops | None
    """Of one row; None for a transformer whose FLOPs nobody wrote down."""
    branches: int
    """Times the transformer sees a latent: 2 with guidance."""
    base_is_frozen: bool
    devices_per_actor: int = 1

    def metrics(
        self,
        row: Mapping[str, float],
        *,
        wall_s: float,
        rollout_devices: Sequence[str],
    ) -> dict[str, float]:
        """Return mfu/rollout/frac and mfu/learner/frac, each where all its devices are known.

        Args:
            row: the step's metrics; rollout/forwards/count, learner/forward_rows/count and
                learner/devices/peak_tflops are used.
            wall_s: the step's wall time, waiting included.
            rollout_devices: the `device_name()` of each actor.
        """
        if self.flops is None:
            return {}
        sampled = row.get("rollout/forwards/count", 0.0) * self.branches * self.flops.forward
        rows = row.get("learner/forward_rows/count", 0.0) * self.branches
        learned = rows * self.flops.learned(base_is_frozen=self.base_is_frozen)
        learner_peak = row.get("learner/devices/peak_tflops", 0.0) * TERA
        return mfu_metrics(
            wall_s,
            rollout=(sampled, total_peak([*rollout_devices] * self.devices_per_actor)),
            learner=(learned, learner_peak),
        )


def open_utilisation(recipe: Recipe) -> Utilisation:
    """Return what the recipe's model needs; reads headers and configuration files only."""
    return Utilisation(
        flops=read_row_flops(recipe.model),
        branches=1 if recipe.rollout.guidance_scale == 1.0 else 2,
        base_is_frozen=recipe.learner.mode == "lora",
        devices_per_actor=recipe.rollout.sequence_parallel,
    )
