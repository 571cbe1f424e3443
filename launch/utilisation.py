"""MFU of a step by role: counts of the metrics row, FLOPs of the recipe's model.

Actors, decoder and learner have mfu/<role>/frac, by formulas. A scorer has
rewards/<scorer>/mfu_frac where torch counts its FLOPs (`rlvid.rewards.flop_count`): on a GPU of
known peak, in the pool's own processes. There is none of a scorer on a CPU, in another interpreter
(`python:` of its entry) or behind a service, nor of one that asks a model server: the tokens of its
requests are known where the judge lives, but neither the model's size nor the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlvid.config import Recipe
from rlvid.launch.model_size import read_decode_flops, read_row_flops
from rlvid.observability.flops import RowFlops
from rlvid.observability.mfu import TERA, mfu_metrics, scorer_mfu_metrics, total_peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilisation:
    """Made by `open_utilisation`."""

    flops: RowFlops | None
    """Of one row; None for a transformer whose FLOPs nobody wrote down."""
    branches: int
    """Times the transformer sees a latent: 2 with guidance."""
    base_is_frozen: bool
    devices_per_actor: int = 1
    decode_flops: int | None = None
    """Of one clip; None with `flops`."""

    def metrics(
        self,
        row: Mapping[str, float],
        *,
        wall_s: float,
        rollout_devices: Sequence[str],
    ) -> dict[str, float]:
        """Return mfu/rollout/frac, mfu/decoder/frac, mfu/learner/frac and those of scorers.

        Each is there where all devices of the role are known, and its FLOPs.

        Args:
            row: the step's metrics. Used are rollout/forwards/count, rollout/clips/count,
                learner/forward_rows/count, peak_tflops of learner/devices, reward_pool/devices and
                each scorer, and each scorer's tflop.
            wall_s: the step's wall time, waiting included.
            rollout_devices: the `device_name()` of each actor.
        """
        found = scorer_mfu_metrics(wall_s, row)
        if self.flops is not None:
            sampled = row.get("rollout/forwards/count", 0.0) * self.branches * self.flops.forward
            rows = row.get("learner/forward_rows/count", 0.0) * self.branches
            learned = rows * self.flops.learned(base_is_frozen=self.base_is_frozen)
            learner_peak = row.get("learner/devices/peak_tflops", 0.0) * TERA
            found |= mfu_metrics(
                wall_s,
                rollout=(sampled, total_peak([*rollout_devices] * self.devices_per_actor)),
                learner=(learned, learner_peak),
            )
        if self.decode_flops is not None:
            decoded = row.get("rollout/clips/count", 0.0) * self.decode_flops
            decoder_peak = row.get("reward_pool/devices/peak_tflops", 0.0) * TERA
            found |= mfu_metrics(wall_s, decoder=(decoded, decoder_peak))
        return found


def open_utilisation(recipe: Recipe) -> Utilisation:
    """Return what the recipe's model needs; reads headers and configuration files only."""
    flops = read_row_flops(recipe.model)
    return Utilisation(
        flops=flops,
        branches=1 if recipe.rollout.guidance_scale == 1.0 else 2,
        base_is_frozen=recipe.learner.mode == "lora",
        devices_per_actor=recipe.rollout.sequence_parallel,
        decode_flops=None if flops is None else read_decode_flops(recipe.model),
    )
