"""Noising final videos again: the same rows wherever and whenever they are made."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlvid.algorithms.forward_batch import ForwardBatch, assemble_forward, split_units
from rlvid.config import RolloutConfig
from rlvid.config.algorithm import ForwardConfig
from rlvid.flow.step_plans import make_step_plan
from rlvid.records import Prompt, Rollout, RolloutGroup

NUM_ROLLOUTS = 4
ADVANTAGE = torch.tensor([1.0, -1.0, 0.5, -0.5])


def group_of(group_id: str = "000000-00") -> RolloutGroup:
    """Return a group whose rollout g is all g; nothing else of it is looked at."""
    config = RolloutConfig.model_validate(
        {"shift": 3.0, "step_plan": {"kind": "ode"}, "initial_noise": "independent"}
    )
    nothing = torch.zeros(0, 2, 1, 2, 2)
    return RolloutGroup(
        group_id=group_id,
        lease_id="lease",
        prompt=Prompt(prompt_id="ball", text="a ball"),
        plan=make_step_plan(config, recipe_seed=0, prompt_id="ball", step=0),
        rollouts=tuple(
            Rollout(
                index=g,
                noise_seed=g,
                step_seed=g,
                latents=torch.full((2, 1, 2, 2), float(g)),
                trained_latents=nothing,
                trained_next_latents=nothing,
                behaviour_mean=nothing,
                behaviour_log_prob=torch.zeros(0),
            )
            for g in range(NUM_ROLLOUTS)
        ),
        policy_version=0,
        weights_digest="",
        actor_id="a",
        sample_s=0.0,
        num_forwards=0,
    )


def rows_of(units: list[tuple[int, ...]], *, group_id: str = "g", **settings: Any) -> ForwardBatch:
    config = ForwardConfig.model_validate({"num_noise_levels": 3, **settings})
    return assemble_forward(group_of(group_id), ADVANTAGE, units, config, seed=7, shift=3.0)


def test_rows_are_by_draw_then_unit_then_place() -> None:
    batch = rows_of([(2, 1), (0, 3)])
    order = [2, 1, 0, 3] * 3
    assert batch.clean[:, 0, 0, 0, 0].tolist() == order
    assert torch.equal(batch.advantage, ADVANTAGE[order])
    assert batch.unit_size == 2
    assert bool(batch.trained.all())


def test_a_pair_shares_its_noise_and_nothing_else_does() -> None:
    """Else the noise would tell chosen from rejected."""
    batch = rows_of([(2, 1), (0, 3)])
    assert torch.equal(batch.noise[::2], batch.noise[1::2])
    assert torch.equal(batch.sigma[::2], batch.sigma[1::2])
    assert batch.sigma[::2].unique().numel() == 6


def test_rows_of_a_rollout_do_not_depend_on_who_else_is_trained() -> None:
    """A masked neighbour, another rank or a resume must not move the noise."""
    every, alone = rows_of([(g,) for g in range(NUM_ROLLOUTS)]), rows_of([(2,)])
    assert torch.equal(every.noise[2::NUM_ROLLOUTS], alone.noise)
    assert torch.equal(every.sigma[2::NUM_ROLLOUTS], alone.sigma)
    assert not torch.equal(rows_of([(2,)], group_id="other").noise, alone.noise)


def test_model_sees_the_noised_video() -> None:
    """(1 - sigma) clean + sigma noise."""
    batch = rows_of([(3,)])
    level = batch.sigma.view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(batch.latents, (1.0 - level) * 3.0 + level * batch.noise)


@pytest.mark.parametrize("density", ["uniform", "logit_normal"])
def test_noise_levels_stay_in_their_range(density: str) -> None:
    batch = rows_of([(0,)], num_noise_levels=200, sigma_range=(0.2, 0.6), density=density)
    assert 0.2 <= float(batch.sigma.min()) < 0.35
    assert 0.5 < float(batch.sigma.max()) <= 0.6


def test_a_student_is_noised_to_its_own_levels_alone() -> None:
    config = ForwardConfig(num_noise_levels=100, sigma_range=(0.4, 0.6))
    levels = (1.0, 0.75, 0.25)
    batch = assemble_forward(
        group_of(), ADVANTAGE, [(0,), (3,)], config, seed=7, shift=3.0, levels=levels
    )
    shares = [float((batch.sigma == level).float().mean()) for level in levels]
    assert sum(shares) == pytest.approx(1.0)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.1)


def test_split_leaves_units_whole_and_loses_no_row() -> None:
    batch = rows_of([(2, 1), (0, 3)])
    parts = split_units(batch, 5)
    assert [part.sigma.numel() for part in parts] == [4, 4, 4]
    assert torch.equal(torch.cat([part.noise for part in parts]), batch.noise)
    with pytest.raises(ValueError, match="micro_batch_rows: 2 rows share"):
        split_units(batch, 1)


def test_rollouts_and_advantages_must_agree() -> None:
    config = ForwardConfig()
    with pytest.raises(ValueError, match="group 000000-00: expected rollouts 0 to 3"):
        assemble_forward(group_of(), ADVANTAGE[:3], [(0,)], config, seed=0, shift=1.0)
    with pytest.raises(ValueError, match="units: expected one or more, all of one length"):
        assemble_forward(group_of(), ADVANTAGE, [(0,), (1, 2)], config, seed=0, shift=1.0)
