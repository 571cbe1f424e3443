"""How far the sampler's log-probabilities lie from the learner's, before the first update."""

from __future__ import annotations

import torch
from torch import Tensor

from rlvid.algorithms.token_grpo import TokenBatch
from rlvid.learners.ranks import Ranks


class SamplingDrift:
    """Adds up |learner - sampler| over the tokens of a batch, in nats.

    The learner's is the behaviour of the ratio, so no drift moves a ratio; but a large one says
    that the tokens were drawn by other weights or from another distribution than is trained.
    """

    def __init__(self) -> None:
        self._sum = 0.0
        self._num_tokens = 0
        self._max = 0.0

    def add(self, scored: TokenBatch, sampled: Tensor) -> None:
        """Take a part with the learner's log-probabilities, and the sampler's [N, T] of it."""
        apart = torch.where(scored.answer_mask, (scored.behaviour_log_prob - sampled).abs(), 0.0)
        counted = scored.answer_mask & scored.trained[:, None]
        self._sum += float(torch.where(counted, apart, 0.0).sum())
        self._num_tokens += int(counted.sum())
        # A NaN is no maximum to Python, and it is the largest of tensors.
        self._max = float(torch.tensor([self._max, float(apart.max())]).max())

    def checked(self, ranks: Ranks, limit: float) -> dict[str, float]:
        """Return the metrics over all ranks; a collective.

        Raises:
            ValueError: the mean is above `limit` nats, on all ranks alike.
        """
        total, num_tokens = ranks.sum([self._sum, float(self._num_tokens)])
        mean = total / max(num_tokens, 1.0)
        largest = ranks.max([self._max])[0]
        if not mean <= limit:
            raise ValueError(
                f"prompt_enhancement: |sampler - learner| of a token's log-probability is "
                f"{mean:.3g} nats in the mean ({largest:.3g} at most) before the update: expected "
                f"at most {limit:.3g} (sampler.max_drift_frac of algorithm.clip_low). The sampler "
                "has other weights or draws from another distribution than the learner trains: see "
                "whether both have the same model, dtype and temperature"
            )
        return {"enhance/sampling_drift/mean": mean, "enhance/sampling_drift/max": largest}
