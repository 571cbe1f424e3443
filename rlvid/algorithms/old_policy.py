"""How the old policy follows the policy: an average whose decay grows with the steps.

DiffusionNFT samples with it and builds its targets around it; AWM pulls towards it. Unlike the
average that is exported (`learner.ema`), its decay is not a constant: a copy at first, so that
learning starts at once, and slower later, so that it does not collapse (arXiv:2509.16117, section
3.3 and figure 8).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DecayRamp:
    """Decay of the old policy by step: 0 up to `start`, then rising by `rate` a step to `cap`."""

    start: int = 0
    """Steps, from 0, through which the old policy is a copy of the policy."""
    rate: float = 0.001
    """Rise of the decay a step."""
    cap: float = 0.5
    """Largest decay, in [0, 1]."""

    def __post_init__(self) -> None:
        if self.start < 0 or self.rate < 0.0 or not 0.0 <= self.cap <= 1.0:
            raise ValueError(
                f"decay ramp: expected start >= 0, rate >= 0 and cap in [0, 1], got {self}."
            )

    def decay(self, step: int) -> float:
        """Return the decay after step `step`, counted from 0."""
        return min(max(step - self.start, 0) * self.rate, self.cap)


FOLLOW = DecayRamp(rate=0.0, cap=0.0)
"""The old policy is the policy of the last step: on-policy, and unstable (NFT, figure 8)."""
NFT_RAMP = DecayRamp(rate=0.001, cap=0.5)
"""min(0.001 i, 0.5): figure 8 of arXiv:2509.16117; decay type 1 of the released code."""
NFT_DELAYED_RAMP = DecayRamp(start=75, rate=0.0075, cap=0.999)
"""0 up to step 75, then 0.0075 (i - 75) up to 0.999: decay type 2 of the released code."""
AWM_RAMP = DecayRamp(rate=0.001, cap=0.3)
"""min(0.001 i, 0.3): the released configurations of AWM (arXiv:2509.25050)."""


@torch.no_grad()
def move_old_policy(
    old: Mapping[str, Tensor], policy: Mapping[str, Tensor], *, decay: float
) -> None:
    """Set old <- decay old + (1 - decay) policy, in place (DiffusionNFT, algorithm 1, line 14).

    A decay of 0 copies the bits of the policy, and one of 1 changes none of the old policy.

    Args:
        old: parameter name to the average, float32.
        policy: the same names.
    """
    if old.keys() != policy.keys():
        odd = sorted(old.keys() ^ policy.keys())
        raise ValueError(f"old policy: expected the parameters of the policy, differing in {odd}.")
    if decay == 1.0:
        return
    for name, value in old.items():
        value.lerp_(policy[name].to(value), 1.0 - decay)
