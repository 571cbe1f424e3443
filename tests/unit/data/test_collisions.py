"""Two objects that meet: exact momentum and energy, and breakages that break what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlvid.data.tiny_world.collisions import (
    COLLISION_BREAKAGES,
    meeting_frame,
    render_pair,
    sample_pair,
    simulate_pair,
)


def sums(seed: int, **broken: float) -> tuple[np.ndarray, np.ndarray]:
    """[T] sum of momenta, [T] sum of kinetic energies; ends only, where no frame straddles."""
    pair = sample_pair(seed, meets=True)
    tracks = simulate_pair(pair, 17, 8, **broken)
    speeds = np.stack([track.velocities[:, 0] for track in tracks])
    masses = np.array(pair.masses)[:, None]
    return (masses * speeds).sum(axis=0), (masses * speeds**2 / 2).sum(axis=0)


@pytest.mark.parametrize("seed", range(8))
def test_a_meeting_keeps_momentum_and_no_more_than_its_energy(seed: int) -> None:
    momentum, energy = sums(seed)
    np.testing.assert_allclose(momentum, momentum[0], atol=1e-6 * abs(momentum).max() + 1e-3)
    assert energy[-1] <= energy[0] * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_momentum_and_energy_gained_are_gained(seed: int) -> None:
    momentum, _ = sums(seed, boost=7.0)
    assert abs(momentum[-1] - momentum[0]) > 100.0
    _, energy = sums(seed, restitution=2.0)
    assert energy[-1] > 1.2 * energy[0]


@pytest.mark.parametrize("seed", range(8))
def test_they_meet_in_the_middle_of_the_clip(seed: int) -> None:
    """Room to see the speeds before and after."""
    pair = sample_pair(seed, meets=True)
    assert 4 <= meeting_frame(simulate_pair(pair, 17, 8)) <= 11


@pytest.mark.parametrize("breakage", COLLISION_BREAKAGES)
def test_a_broken_pair_differs_from_the_true_one_and_is_repeatable(breakage: str) -> None:
    broken, pair = render_pair(5, breakage=breakage)
    true, _ = render_pair(5)
    assert broken.shape == (17, 3, 32, 32)
    assert torch.equal(broken, render_pair(5, breakage=breakage)[0])
    assert int(((true - broken).abs().amax(dim=1) > 1 / 3).sum()) > 60
    assert pair.text.endswith(("collide", "fall side by side"))


def test_an_unknown_breakage_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown breakage.*'explode'"):
        render_pair(0, breakage="explode")
