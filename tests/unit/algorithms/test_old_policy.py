"""How the old policy follows: the published ramps, and the two ends of the average."""

from __future__ import annotations

import pytest
import torch

from rlvid.algorithms.old_policy import (
    AWM_RAMP,
    FOLLOW,
    NFT_DELAYED_RAMP,
    NFT_RAMP,
    DecayRamp,
    move_old_policy,
)


@pytest.mark.parametrize(
    ("ramp", "step", "decay"),
    [
        (FOLLOW, 1000, 0.0),
        (NFT_RAMP, 0, 0.0),
        (NFT_RAMP, 100, 0.1),
        (NFT_RAMP, 900, 0.5),
        (NFT_DELAYED_RAMP, 75, 0.0),
        (NFT_DELAYED_RAMP, 76, 0.0075),
        (NFT_DELAYED_RAMP, 175, 0.75),
        (NFT_DELAYED_RAMP, 1000, 0.999),
        (AWM_RAMP, 1000, 0.3),
    ],
)
def test_decay_of_the_published_ramps(ramp: DecayRamp, step: int, decay: float) -> None:
    """min(0.001 i, 0.5); 0 to step 75, then 0.0075 a step to 0.999; min(0.001 i, 0.3)."""
    assert ramp.decay(step) == pytest.approx(decay, rel=1e-12)


def test_average_by_hand_and_at_its_ends() -> None:
    """0.75 * 4 + 0.25 * 8 = 5; a decay of 0 copies the bits, one of 1 keeps them."""
    old = {"a": torch.tensor([4.0])}
    policy = {"a": torch.tensor([8.0])}
    move_old_policy(old, policy, decay=0.75)
    assert old["a"].tolist() == [5.0]
    odd = torch.randn(64, generator=torch.Generator().manual_seed(0))
    new = torch.randn(64, generator=torch.Generator().manual_seed(1))
    held = {"a": odd.clone()}
    move_old_policy(held, {"a": new}, decay=1.0)
    assert torch.equal(held["a"], odd)
    move_old_policy(held, {"a": new}, decay=0.0)
    assert torch.equal(held["a"], new)


def test_other_parameters_are_an_error() -> None:
    """A parameter the average lacks would stay what it was at the start."""
    with pytest.raises(ValueError, match="'b'"):
        move_old_policy({"a": torch.zeros(1)}, {"b": torch.zeros(1)}, decay=0.5)


def test_ramp_outside_its_range_is_an_error() -> None:
    with pytest.raises(ValueError, match="cap"):
        DecayRamp(cap=1.5)
