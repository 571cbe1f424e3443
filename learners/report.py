"""Metrics of an update, summed over micro-batches, updates and ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rlvid.algorithms.base import Credit, LossTerms
from rlvid.learners.ranks import Ranks

MEANS: Mapping[str, str] = {
    "ratio": "learner/ratio/mean",
    "clip_frac": "learner/clip/frac",
    "policy_loss": "learner/policy_loss/mean",
    "kl": "learner/kl/mean",
}
"""Sum of an algorithm's terms to the metric of its mean over trained rows."""


class UpdateTotals:
    """Collects the terms of one batch."""

    def __init__(self, total_rows: float) -> None:
        """`total_rows` are the trained rows of one update over all ranks."""
        self._total_rows = total_rows
        self._loss = 0.0
        self._rows = 0
        self._forwards = 0
        self._sums = dict.fromkeys(MEANS, 0.0)
        self._has_kl = False
        self._deviation = 0.0
        self.replay_drift = 0.0
        self.learning_rate = 0.0
        self.grad_norm = 0.0

    def add(self, terms: LossTerms) -> None:
        """Count the terms of one micro-batch; one without trained rows only as a forward."""
        self._forwards += 1
        if not terms.num_rows:
            return
        self._loss += float(terms.loss_sum.detach())
        self._rows += terms.num_rows
        for name in self._sums:
            if name in terms.sums:
                self._sums[name] += float(terms.sums[name])
        self._has_kl = self._has_kl or "kl" in terms.sums
        self._deviation = max(self._deviation, float(terms.maxima["ratio_deviation_max"]))

    def metrics(self, ranks: Ranks) -> dict[str, float]:
        """Return the metrics over all ranks; a collective."""
        names = list(self._sums)
        loss, rows, forwards, has_kl, *sums = ranks.sum(
            [self._loss, self._rows, self._forwards, float(self._has_kl)]
            + [self._sums[name] for name in names]
        )
        means = {MEANS[name]: value / rows for name, value in zip(names, sums, strict=True)}
        if not has_kl:
            del means[MEANS["kl"]]
        return {
            **means,
            "learner/loss/mean": loss / rows,
            "learner/ratio/max_deviation": ranks.max([self._deviation])[0],
            "learner/replay_drift/max": self.replay_drift,
            "learner/grad_norm/total": self.grad_norm,
            "learner/learning_rate/value": self.learning_rate,
            "learner/rows/count": self._total_rows,
            "learner/forwards/count": forwards,
        }


def advantage_metrics(credit: Credit, clip: float) -> dict[str, float]:
    """Return the spread of the trained advantages and the share at the clip value."""
    advantage = credit.advantage[credit.trained]
    return {
        "learner/advantage/std": float(advantage.std(correction=0)),
        "learner/advantage/clipped_frac": float((advantage.abs() >= clip).float().mean()),
    }


def memory_metrics(device: torch.device) -> dict[str, float]:
    """Return the device memory this rank held at most; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    return {"learner/memory/peak_mb": torch.cuda.max_memory_allocated(device) / 2**20}
