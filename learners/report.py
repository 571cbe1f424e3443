"""Metrics of an update, summed over micro-batches, updates and ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from rlvid.algorithms.base import Credit, LossTerms
from rlvid.learners.ranks import Ranks
from rlvid.observability.memory_peak import peak_mib
from rlvid.observability.mfu import TERA, device_name, peak_flops

MEANS: Mapping[str, str] = {
    "ratio": "learner/ratio/mean",
    "clip_frac": "learner/clip/frac",
    "policy_loss": "learner/policy_loss/mean",
    "kl": "learner/kl/mean",
    "anchor_kl": "learner/anchor_kl/mean",
    "pulled_frac": "learner/pulled/frac",
    "importance": "learner/importance/mean",
    "truncated_frac": "learner/importance/truncated_frac",
    "old_distance": "learner/old_distance/mean",
    "reference_distance": "learner/reference_distance/mean",
    "implicit_margin": "learner/implicit_margin/mean",
    "pairs_right": "learner/pairs_right/frac",
    "differentiable_reward": "learner/differentiable_reward/mean",
}
"""Sum of an algorithm's terms to the metric of its mean over trained rows."""


class UpdateTotals:
    """Collects the terms of one batch over its chunks and updates."""

    def __init__(self) -> None:
        self._loss = 0.0
        self._rows = 0
        self._forwards = 0
        self._forward_rows = 0
        self._seconds = 0.0
        self._sums: dict[str, float] = {}
        self._deviation = -math.inf
        self.replay_drift: float | None = None
        """|ratio - 1| before the first update; None where nothing is replayed."""
        self.data_loss: float | None = None
        """Flow-matching loss of the clips beside the batch, over all ranks; None without any."""
        self.learning_rate = 0.0
        self.grad_norm = 0.0

    def add(self, terms: LossTerms, *, forward_rows: int, seconds: float) -> None:
        """Count the terms of one micro-batch; one without trained rows only as a forward.

        Args:
            forward_rows: latents it handed to the model.
            seconds: its forward and backward pass took.
        """
        self._forwards += 1
        self._forward_rows += forward_rows
        self._seconds += seconds
        if not terms.num_rows:
            return
        self._loss += float(terms.loss_sum.detach())
        self._rows += terms.num_rows
        for name in MEANS:
            if name in terms.sums:
                self._sums[name] = self._sums.get(name, 0.0) + float(terms.sums[name])
        if "ratio_deviation_max" in terms.maxima:
            self._deviation = max(self._deviation, float(terms.maxima["ratio_deviation_max"]))

    def metrics(self, ranks: Ranks, *, update_rows: float) -> dict[str, float]:
        """Return the metrics over all ranks; a collective.

        Args:
            update_rows: trained rows of one update over all ranks.
        """
        names = list(MEANS)
        peak = peak_flops(device_name())
        in_a_clip = ranks.world_size // ranks.data_parallel
        loss, rows, forwards, forward_rows, tflops, *sums = ranks.sum(
            [self._loss, self._rows, self._forwards, self._forward_rows]
            + [float("nan") if peak is None else peak / TERA * in_a_clip]
            + [self._sums.get(name, 0.0) for name in names]
        )
        seconds, *has = ranks.max([self._seconds] + [float(name in self._sums) for name in names])
        means = {
            MEANS[name]: value / rows
            for name, value, is_there in zip(names, sums, has, strict=True)
            if is_there
        }
        deviation = ranks.max([self._deviation])[0]
        if math.isfinite(deviation):
            means["learner/ratio/max_deviation"] = deviation
        if self.replay_drift is not None:
            means["learner/replay_drift/max"] = self.replay_drift
        if self.data_loss is not None:
            means["learner/data_loss/mean"] = self.data_loss
        return {
            **means,
            "learner/loss/mean": loss / rows,
            "learner/grad_norm/total": self.grad_norm,
            "learner/learning_rate/value": self.learning_rate,
            "learner/rows/count": update_rows,
            "learner/forwards/count": forwards,
            "learner/forward_rows/count": forward_rows,
            "learner/forwards/seconds": seconds,
            **({"learner/devices/peak_tflops": tflops} if math.isfinite(tflops) else {}),
        }


class Usage:
    """How long a rank worked for its callers, and how long it waited for the next call."""

    def __init__(self) -> None:
        self._busy_s = 0.0
        self._since = time.perf_counter()
        self._depth = 0
        self._entered = 0.0

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count the block as work."""
        if self._depth == 0:
            self._entered = time.perf_counter()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._busy_s += time.perf_counter() - self._entered

    def take(self) -> dict[str, float]:
        """Return seconds of work and of waiting since the last call, and start anew.

        Within a block its part so far counts to this report, the rest to the next.
        """
        now = time.perf_counter()
        busy_s = self._busy_s + (now - self._entered if self._depth else 0.0)
        idle_s = max(now - self._since - busy_s, 0.0)
        self._busy_s, self._since, self._entered = 0.0, now, now
        return {"time/learner_busy/seconds": busy_s, "time/learner_idle/seconds": idle_s}


def advantage_metrics(credit: Credit, clip: float) -> dict[str, float]:
    """Return the spread of the trained advantages and the share at the clip value."""
    advantage = credit.advantage[credit.trained]
    return {
        "learner/advantage/std": float(advantage.std(correction=0)),
        "learner/advantage/clipped_frac": float((advantage.abs() >= clip).float().mean()),
    }


def memory_metrics(device: torch.device) -> dict[str, float]:
    """Return the most memory this rank held: of its GPU, or in RAM without one."""
    if device.type != "cuda":
        return {"learner/memory/peak_mb": peak_mib()}
    return {"learner/memory/peak_mb": torch.cuda.max_memory_allocated(device) / 2**20}
