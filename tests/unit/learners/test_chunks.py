"""Chunks of one rank: what is refused, what a refusal leaves, which publishes count."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest

from rlvid.algorithms.score_table import RewardTable
from rlvid.learners.rl import GroupUnavailableError, RlLearner, StaleGroupError
from rlvid.learners.testing import tiny_groups, tiny_recipe, tiny_rewards, tiny_settings
from rlvid.observability.metrics import check_names
from rlvid.records import RolloutGroup, StepReport
from rlvid.testing import tiny_model
from rlvid.weights import digest_tensors

Groups = dict[str, RolloutGroup]


def _open(**sections: dict[str, Any]) -> tuple[RlLearner, Groups, RewardTable]:
    sections.setdefault("learner", {"zero_stage": 2})
    recipe = tiny_recipe(**sections)
    learner = RlLearner(tiny_settings(recipe), tiny_model(0))
    learner.publish(0)
    groups = tiny_groups(tiny_model(0), recipe, digest=learner.published_digest(0))
    return learner, groups, tiny_rewards(groups)


def _add(
    learner: RlLearner, groups: Groups, rewards: RewardTable, first: int, last: int
) -> StepReport | None:
    ids = rewards.group_ids[first:last]
    part = replace(
        rewards,
        group_ids=ids,
        values={name: table[first:last] for name, table in rewards.values.items()},
    )
    return learner.train_chunk(
        {name: groups[name] for name in ids},
        part,
        step=0,
        num_groups=len(rewards.group_ids),
        first_row=first,
        is_last=last == len(rewards.group_ids),
        plans=[group.plan for group in groups.values()],
    )


def _digest(learner: RlLearner) -> str:
    return digest_tensors(dict(learner.trainee.engine.full_parameters()))


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_batch_after_a_failed_chunk_is_as_if_nothing_had_been(zero_stage: int) -> None:
    """Half a gradient left behind would be taken for part of the next batch's."""
    digests = []
    for fails in (False, True):
        learner, groups, rewards = _open(learner={"zero_stage": zero_stage})
        if fails:
            _add(learner, groups, rewards, 0, 2)
            name = rewards.group_ids[3]
            stale = groups | {name: replace(groups[name], weights_digest="feed" * 8)}
            with pytest.raises(StaleGroupError, match=f"group {name} "):
                _add(learner, stale, rewards, 2, 4)
            with pytest.raises(ValueError, match="begins again after a chunk that failed"):
                _add(learner, groups, rewards, 2, 4)
        _add(learner, groups, rewards, 0, 2)
        _add(learner, groups, rewards, 2, 4)
        digests.append(_digest(learner))
    assert digests[0] == digests[1]


def test_report_is_of_the_whole_batch() -> None:
    learner, groups, rewards = _open(algorithm={"updates_per_batch": 2})
    assert _add(learner, groups, rewards, 0, 1) is None
    report = _add(learner, groups, rewards, 1, 4)
    assert report is not None
    assert list(report.trained_group_ids) == list(rewards.group_ids)
    assert report.metrics["learner/rows/count"] == 4 * 4
    assert report.metrics["learner/chunks/count"] == 2
    assert report.metrics["learner/forwards/count"] == 2 * 4
    assert report.metrics["time/learner_busy/seconds"] > 0.0
    assert report.metrics["time/learner_idle/seconds"] >= 0.0
    check_names(report.metrics)


def test_several_updates_take_all_chunks() -> None:
    """Later updates go over micro-batches that were kept from chunks long gone."""
    digests = []
    for cut in ((4,), (2, 4), (1, 2, 3, 4)):
        learner, groups, rewards = _open(algorithm={"updates_per_batch": 2})
        for first, last in zip((0, *cut), cut, strict=False):
            _add(learner, groups, rewards, first, last)
        digests.append(_digest(learner))
    assert len(set(digests)) == 1


def test_chunk_out_of_order_is_refused() -> None:
    learner, groups, rewards = _open()
    _add(learner, groups, rewards, 0, 2)
    with pytest.raises(ValueError, match="at row 1: expected a multiple of the 1 ranks from 2 on"):
        _add(learner, groups, rewards, 1, 4)


def test_first_chunk_of_several_needs_the_plans() -> None:
    """Weights of the steps are normalised over the whole batch."""
    learner, groups, rewards = _open()
    name = rewards.group_ids[0]
    one = replace(rewards, group_ids=(name,), values={"reward": rewards.values["reward"][:1]})
    with pytest.raises(ValueError, match="needs the plans of all its 4 groups"):
        learner.train_chunk(
            {name: groups[name]}, one, step=0, num_groups=4, first_row=0, is_last=False
        )


def test_group_with_another_plan_than_announced_is_refused() -> None:
    learner, groups, rewards = _open()
    name = rewards.group_ids[1]
    plan = groups[name].plan
    moved = replace(plan, noise=replace(plan.noise, eta=0.5))
    with pytest.raises(ValueError, match=f"group {name} has another step plan"):
        learner.train_chunk(
            groups,
            rewards,
            step=0,
            num_groups=4,
            first_row=0,
            is_last=True,
            plans=[moved if n == name else group.plan for n, group in groups.items()],
        )


def test_nothing_is_published_or_saved_in_the_middle_of_a_batch(tmp_path: Any) -> None:
    """A checkpoint there would lose the chunks that were taken."""
    learner, groups, rewards = _open()
    _add(learner, groups, rewards, 0, 2)
    with pytest.raises(ValueError, match="step 0 has chunks and no optimiser step yet"):
        learner.save(tmp_path)
    with pytest.raises(ValueError, match="step 0 has chunks and no optimiser step yet"):
        learner.publish(1)
    learner.abandon()
    learner.publish(1)


def test_groups_of_an_earlier_start_of_the_learner_are_admitted() -> None:
    """It gave the same version another digest; its groups are no older for that."""
    learner, groups, rewards = _open()
    name = rewards.group_ids[2]
    groups[name] = replace(groups[name], weights_digest="beef" * 8)
    with pytest.raises(StaleGroupError, match=f"group {name} .*beefbeef"):
        learner.train(groups, rewards, step=0)
    learner.restore_published([(0, "beef" * 8)])
    report = learner.train(groups, rewards, step=0)
    assert name in report.trained_group_ids


class _Lossy(dict[str, RolloutGroup]):
    """Groups of which one is gone with its machine."""

    gone = "000000-02"

    def __getitem__(self, name: str) -> RolloutGroup:
        if name == self.gone:
            raise GroupUnavailableError([name], "ObjectLostError: its node died")
        return super().__getitem__(name)


def test_group_that_is_gone_is_named_and_the_batch_can_begin_again() -> None:
    """Each rank fetches its own; all of them must end the chunk, or the others would hang."""
    learner, groups, rewards = _open()
    with pytest.raises(GroupUnavailableError, match="group 000000-02 cannot be fetched") as caught:
        learner.train(_Lossy(groups), rewards, step=0)
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.group_ids == ("000000-02",)
    assert str(again) == str(caught.value)
    assert len(learner.train(groups, rewards, step=0).trained_group_ids) == 4


def test_replay_of_an_earlier_starts_groups_need_not_be_exact() -> None:
    """Same version, other weights: only those of this start replay with ratio 1."""
    learner, groups, rewards = _open(algorithm={"clip_range": 1e-6})
    for name, group in groups.items():
        off = tuple(
            replace(rollout, behaviour_log_prob=rollout.behaviour_log_prob + 1.0)
            for rollout in group.rollouts
        )
        groups[name] = replace(group, rollouts=off, weights_digest="beef" * 8)
    learner.restore_published([(0, "beef" * 8)])
    metrics = learner.train(groups, rewards, step=0).metrics
    assert metrics["learner/replay_drift/max"] == 0.0
    assert metrics["learner/ratio/max_deviation"] > 1e-4


@pytest.mark.parametrize("updates", [1, 2])
def test_importance_weight_of_fresh_groups_is_exactly_one(updates: int) -> None:
    """A cap must not change a bit of on-policy training."""
    digests = []
    for cap in (None, 2.0):
        learner, groups, rewards = _open(
            algorithm={"importance_cap": cap, "updates_per_batch": updates}
        )
        metrics = learner.train(groups, rewards, step=0).metrics
        digests.append(_digest(learner))
    assert metrics["learner/importance/mean"] == 1.0
    assert metrics["learner/importance/truncated_frac"] == 0.0
    assert digests[0] == digests[1]


def test_groups_of_the_version_before_are_weighted_and_new_ones_are_not() -> None:
    """Half of the batch is a version behind: its mean weight is off 1, and no more than the cap."""
    learner, groups, rewards = _open(
        learner={"zero_stage": 0, "mode": "full", "optimizer": {"learning_rate": 1e-2}},
        rollout={"max_staleness": 1},
        algorithm={"importance_cap": 1.0},
        grpo={"max_replay_drift_frac": 1e6},
    )
    learner.train(groups, rewards, step=0)
    learner.publish(1)
    digest = learner.published_digest(1)
    mixed = {
        name: replace(group, policy_version=1, weights_digest=digest) if row < 2 else group
        for row, (name, group) in enumerate(groups.items())
    }
    metrics = learner.train(mixed, rewards, step=1).metrics
    assert 0.0 < metrics["learner/importance/truncated_frac"] <= 0.5
    assert metrics["learner/importance/mean"] < 1.0
    assert metrics["learner/importance/mean"] > 0.5


def test_batched_replay_gives_the_gradient_of_the_sampled_batches() -> None:
    """Fewer forwards, the same numbers up to float32 rounding: 1e-5 of the norm."""
    norms, forwards = [], []
    for replay in ("as_sampled", "batched"):
        learner, groups, rewards = _open(
            learner={"zero_stage": 0, "replay": replay},
            rollout={"step_plan": {"kind": "random", "num_steps": 2}},
            grpo={"max_replay_drift_frac": 1e6},
        )
        metrics = learner.train(groups, rewards, step=0).metrics
        norms.append(metrics["learner/grad_norm/total"])
        forwards.append(metrics["learner/forwards/count"])
    assert forwards == [4 * 2, 4]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
