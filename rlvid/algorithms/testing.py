"""What the author of an algorithm needs: a check of the promises that the learner builds on.

Letters: P groups, G rollouts in a group.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from rlvid.algorithms.base import Algorithm, Credit, ForwardAlgorithm, LossTerms
from rlvid.algorithms.batch import assemble, select_forward
from rlvid.algorithms.forward_batch import ForwardBatch, assemble_forward, split_units
from rlvid.algorithms.refl import Refl
from rlvid.config.algorithm import AlgorithmConfig
from rlvid.config.rollout import RolloutConfig
from rlvid.flow.sampler import GroupSample, sample_group
from rlvid.flow.step_plans import make_step_plan
from rlvid.flow.step_weights import update_step_weights
from rlvid.records import Prompt, Rollout, RolloutGroup

NUM_GROUPS, GROUP_SIZE = 4, 4
SHAPE = (2, 1, 4, 4)


def check_algorithm(algorithm: object, config: AlgorithmConfig | None = None) -> None:
    """Assert that `algorithm` keeps the promises of `Algorithm`, `ForwardAlgorithm` or `Refl`.

    Credit masks what has no score, but for `Refl` what has no spread, and is local to groups where
    it says so. A loss is a sum over trained rows with a finite gradient, so that any cut into
    micro-batches adds up; rows that are not trained add exactly 0, and no gradient flows into
    another policy.

    Args:
        config: that it is to be checked under; its defaults when None.

    Raises:
        AssertionError: one line that says which promise was broken.
    """
    name = type(algorithm).__name__
    config = config or AlgorithmConfig()
    if isinstance(algorithm, ForwardAlgorithm):
        kept = _check_credit(algorithm, config, name)
        _check_forward(algorithm, config, kept, name)
        return
    if isinstance(algorithm, Refl):
        _check_credit(algorithm, config, name)
        _check_rewards(algorithm, config, name)
        return
    assert isinstance(algorithm, Algorithm), (
        f"{name}: has the methods of neither Algorithm nor ForwardAlgorithm"
    )
    kept = _check_credit(algorithm, config, name)
    _check_steps(algorithm, config, kept, name)


def _check_credit(
    algorithm: Algorithm | ForwardAlgorithm | Refl, config: AlgorithmConfig, name: str
) -> tuple[Tensor, Tensor]:
    """Return advantage and trained [G] of a group that was kept."""
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(NUM_GROUPS, GROUP_SIZE, generator=generator)
    table[1, 2], table[2] = torch.nan, 0.5

    def credit(rows: list[int]) -> Credit:
        return algorithm.credit({"reward": table[rows].clone()}, {"reward": 1.0}, config.advantage)

    found = credit(list(range(NUM_GROUPS)))
    for field in ("advantage", "reward", "trained"):
        shape = tuple(getattr(found, field).shape)
        assert shape == (NUM_GROUPS, GROUP_SIZE), (
            f"{name}: credit().{field}: expected {(NUM_GROUPS, GROUP_SIZE)}, got {shape}"
        )
    assert not found.trained[1, 2], f"{name}: credit() trains a rollout without a score"
    if not isinstance(algorithm, Refl):
        assert not found.trained[2].any(), f"{name}: credit() trains a group without a spread"
        assert 2 in {row for row, _ in found.dropped}, f"{name}: credit() does not drop that group"
    assert (found.advantage[~found.trained] == 0.0).all(), (
        f"{name}: credit().advantage is not exactly 0 where nothing is trained"
    )
    assert bool(torch.isfinite(found.advantage).all()), f"{name}: credit() gives no finite numbers"
    if getattr(algorithm, "is_group_local", False):
        alone = torch.cat([credit([row]).advantage for row in range(NUM_GROUPS)])
        assert torch.equal(alone, found.advantage), (
            f"{name}: says is_group_local, but the credit of a group depends on the others"
        )
    return found.advantage[0], found.trained[0]


def _check_forward(
    algorithm: ForwardAlgorithm, config: AlgorithmConfig, kept: tuple[Tensor, Tensor], name: str
) -> None:
    units = algorithm.units(*kept, config)
    members = [index for unit in units for index in unit]
    known = set(kept[1].nonzero()[:, 0].tolist())
    assert units, f"{name}: units() is empty for a group that credit() kept"
    assert len({len(unit) for unit in units}) == 1, f"{name}: units() differ in length"
    assert set(members) <= known, f"{name}: units() hold rollouts that are not trained"
    batch = assemble_forward(_group("ode"), kept[0], units, config.forward, seed=0, shift=3.0)
    others = algorithm.other_policies(config)
    assert others.old is not None or not others.samples_with_old, (
        f"{name}: samples with an old policy that other_policies() does not ask for"
    )

    def loss(part: ForwardBatch) -> tuple[LossTerms, dict[str, Tensor]]:
        factors = {"velocity": 0.3}
        factors |= {"old_velocity": 0.31} if others.old is not None else {}
        factors |= {"reference_velocity": 0.32} if others.reference else {}
        given = {key: (factor * part.latents).requires_grad_() for key, factor in factors.items()}
        return algorithm.loss(part, config=config, **given), given

    whole, given = loss(batch)
    _check_terms(whole, given, name)
    parts = [loss(part)[0] for part in split_units(batch, batch.unit_size)]
    _check_sum(whole, parts, name)
    nothing, given = loss(replace(batch, trained=torch.zeros_like(batch.trained)))
    _check_nothing(nothing, given["velocity"], name)


def _check_steps(
    algorithm: Algorithm, config: AlgorithmConfig, kept: tuple[Tensor, Tensor], name: str
) -> None:
    group = _group("isotemporal")
    [weights] = update_step_weights("none", [group.plan])
    batch = assemble(group, *kept, step_weights=weights)

    def loss(part: Any) -> tuple[LossTerms, dict[str, Tensor]]:
        given = {"velocity": _velocity(part.latents, part.sigma).requires_grad_()}
        if config.kl.kind != "none":
            given["reference_velocity"] = (0.9 * given["velocity"].detach()).requires_grad_()
        if config.kl.kind == "dual":
            given["anchor_velocity"] = (0.8 * given["velocity"].detach()).requires_grad_()
        return algorithm.loss(part, config=config, **given), given

    whole, given = loss(batch)
    _check_terms(whole, given, name)
    parts = [select_forward(batch, row) for row in batch.unique_rows.split(1)]
    _check_sum(whole, [loss(part)[0] for part in parts], name)
    nothing, given = loss(replace(batch, trained=torch.zeros_like(batch.trained)))
    _check_nothing(nothing, given["velocity"], name)


def _check_rewards(algorithm: Refl, config: AlgorithmConfig, name: str) -> None:
    path = algorithm.path(40, config, generator=torch.Generator().manual_seed(0))
    path.last_step(40)
    rewards = torch.linspace(-1.0, 1.0, GROUP_SIZE)

    def loss(rows: slice, is_trained: bool = True) -> tuple[LossTerms, dict[str, Tensor]]:
        given = {"velocity": rewards[rows].clone().requires_grad_()}
        trained = torch.full((len(given["velocity"]),), is_trained)
        return algorithm.terms(given["velocity"], trained, config=config), given

    whole, given = loss(slice(None))
    _check_terms(whole, given, name)
    _check_sum(whole, [loss(slice(row, row + 1))[0] for row in range(GROUP_SIZE)], name)
    nothing, given = loss(slice(None), is_trained=False)
    _check_nothing(nothing, given["velocity"], name)


def _check_terms(terms: LossTerms, given: dict[str, Tensor], name: str) -> None:
    shape = tuple(terms.loss_sum.shape)
    assert shape == (), f"{name}: loss().loss_sum: expected a scalar, got shape {shape}"
    assert terms.num_rows > 0, f"{name}: loss().num_rows: expected some, got {terms.num_rows}"
    found = torch.autograd.grad(terms.loss_sum, list(given.values()), allow_unused=True)
    gradients = dict(zip(given, found, strict=True))
    own = gradients.pop("velocity")
    assert own is not None, f"{name}: loss() has no gradient in the policy's velocity"
    assert bool(torch.isfinite(own).all()), f"{name}: loss() has a gradient that is not finite"
    for key, gradient in gradients.items():
        assert gradient is None or not gradient.any(), f"{name}: a gradient flows into {key}"


def _check_sum(whole: LossTerms, parts: list[LossTerms], name: str) -> None:
    total = sum(float(part.loss_sum.detach()) for part in parts)
    expected = float(whole.loss_sum.detach())
    assert math.isclose(total, expected, rel_tol=1e-4, abs_tol=1e-6), (
        f"{name}: loss() is no sum over rows: {expected:g} of the whole batch, "
        f"{total:g} of its parts"
    )
    rows = sum(part.num_rows for part in parts)
    assert rows == whole.num_rows, (
        f"{name}: loss().num_rows: {whole.num_rows} of the whole batch, {rows} of its parts"
    )


def _check_nothing(terms: LossTerms, velocity: Tensor, name: str) -> None:
    [gradient] = torch.autograd.grad(terms.loss_sum, [velocity])
    added = float(terms.loss_sum.detach()) != 0.0 or bool(gradient.any())
    assert not added, f"{name}: rows that are not trained add to the loss"
    assert not terms.num_rows, f"{name}: rows that are not trained count as {terms.num_rows}"


def _velocity(latents: Tensor, sigma: Tensor) -> Tensor:
    """A policy of one number: any will do, as long as it moves."""
    return 0.3 * latents.detach() + sigma.view(-1, 1, 1, 1, 1)


def _group(kind: str) -> RolloutGroup:
    """Sample a group of a policy that is one number."""
    config = RolloutConfig.model_validate(
        {
            "shift": 3.0,
            "group_size": GROUP_SIZE,
            "step_plan": {"kind": kind},
            "initial_noise": "independent",
        }
    )
    plan = make_step_plan(config, recipe_seed=0, prompt_id="check", step=0)
    sample: GroupSample = sample_group(
        _velocity,
        plan,
        noise_seeds=range(GROUP_SIZE),
        step_seeds=range(GROUP_SIZE),
        latent_shape=SHAPE,
    )
    stacked = [field.name for field in fields(sample) if field.name != "num_forwards"]
    return RolloutGroup(
        group_id="000000-0000",
        lease_id="lease",
        prompt=Prompt(prompt_id="check", text="a ball"),
        plan=plan,
        rollouts=tuple(
            Rollout(
                index=g,
                noise_seed=g,
                step_seed=g,
                **{key: getattr(sample, key)[g] for key in stacked},
            )
            for g in range(GROUP_SIZE)
        ),
        policy_version=0,
        weights_digest="",
        actor_id="check",
        sample_s=0.0,
        num_forwards=sample.num_forwards,
    )
