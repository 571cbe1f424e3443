"""The metrics row of a GRPO step, from groups whose scores were made by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from rlvid.launch.groups import ScoredGroup
from rlvid.launch.step_metrics import step_metrics
from rlvid.observability.metrics import check_names
from rlvid.records import StepReport, WeightsBucket, WeightsManifest
from tests.unit.launch.hand_made import recipe, scored_group

SCORERS = {"scorers": [{"use": "adherence", "weight": 3.0}, {"use": "physics", "weight": 1.0}]}
MANIFEST = WeightsManifest(
    incarnation=1,
    version=4,
    parent_version=3,
    kind="lora",
    base_digest="base",
    tensors=(),
    buckets=(
        WeightsBucket(index=0, num_bytes=2**20, digest="a"),
        WeightsBucket(index=1, num_bytes=2**19, digest="b"),
    ),
    num_bound=2,
    canary_tolerance=1e-5,
    digest="digest",
)


def _row(*groups: ScoredGroup, num_lost: int = 0) -> Mapping[str, float]:
    report = StepReport(
        step=3,
        metrics={"learner/loss/mean": -0.5},
        trained_group_ids=("t-000",),
        dropped_group_ids=("t-001",),
    )
    return step_metrics(
        recipe(rewards=SCORERS),
        groups,
        report,
        MANIFEST,
        weights={"adherence": 3.0, "physics": 0.25},
        num_lost=num_lost,
        seconds={"step": 9.0},
    )


def test_row_holds_weighted_rewards_and_plain_scores() -> None:
    """Reward = (3 adherence + physics) / 4; scorers keep their own means."""
    row = _row(
        scored_group("a", {"adherence": [1.0, 0.0], "physics": [0.0, 0.0]}, policy_version=3),
        scored_group("b", {"adherence": [1.0, 1.0], "physics": [1.0, 1.0]}, policy_version=2),
    )
    check_names(row)
    assert row["rollout/reward/mean"] == pytest.approx((0.75 + 0.0 + 1.0 + 1.0) / 4)
    assert (row["rollout/reward/min"], row["rollout/reward/max"]) == (0.0, 1.0)
    assert row["rollout/reward/group_std"] == pytest.approx((0.375 + 0.0) / 2)
    assert row["rewards/adherence/mean"] == pytest.approx(0.75)
    assert (row["rewards/adherence/weight"], row["rewards/physics/weight"]) == (3.0, 0.25)
    assert row["rewards/physics/mean"] == pytest.approx(0.5)
    assert (row["rollout/staleness/mean"], row["rollout/staleness/max"]) == (0.5, 1.0)
    assert (row["rollout/groups/consumed"], row["rollout/groups/uniform"]) == (1.0, 1.0)
    assert row["rollout/forwards/count"] == 20.0
    assert (row["weights/version/value"], row["weights/publish/mb"]) == (4.0, 1.5)
    assert (row["time/step/seconds"], row["time/rollout_actors/seconds"]) == (9.0, 2.0)
    assert row["time/reward_pool/seconds"] == 1.5
    assert row["learner/loss/mean"] == -0.5


def test_missing_score_is_counted_and_takes_its_rollout_out_of_the_reward() -> None:
    """As 0 it would read as a bad video, when all that failed was the scorer."""
    row = _row(scored_group("a", {"adherence": [1.0, 1.0], "physics": [None, 1.0]}))
    assert row["rewards/physics/missing_frac"] == 0.5
    assert row["rewards/adherence/missing_frac"] == 0.0
    assert row["rollout/reward/min"] == row["rollout/reward/mean"] == 1.0
    assert "rollout/reward/group_std" not in row


def test_step_without_any_score_has_a_row_without_rewards() -> None:
    """The row must not be lost, nor hold a number for what nobody knows."""
    row = _row(scored_group("a", {"adherence": [None], "physics": [None]}))
    assert row["rewards/adherence/missing_frac"] == 1.0
    assert not [name for name in row if name.startswith("rollout/reward/")]
    assert "rewards/adherence/mean" not in row


def test_prompt_twice_in_a_step_counts_twice() -> None:
    """Steps of a small prompt set run over the end of an epoch and may meet a prompt again."""
    row = _row(
        scored_group("a", {"adherence": [1.0], "physics": [1.0]}, position=0),
        scored_group("a", {"adherence": [0.0], "physics": [0.0]}, position=1),
    )
    assert row["rollout/reward/mean"] == pytest.approx(0.5)


def test_lost_actors_are_those_of_the_step() -> None:
    """Its healthy value is 0: a sum over the run would stay red after a single loss."""
    group = scored_group("a", {"adherence": [1.0], "physics": [1.0]})
    assert _row(group, num_lost=2)["rollout/actors/lost"] == 2.0
    assert all(math.isfinite(value) for value in _row(group).values())


def test_step_that_lost_all_its_groups_has_a_row() -> None:
    """Every prompt of it may be quarantined; the run goes on."""
    row = _row()
    assert row["rollout/staleness/max"] == 0.0
    assert "rollout/reward/mean" not in row
    check_names(row)


def with_flops(group: ScoredGroup, **flops: float) -> ScoredGroup:
    return replace(group, scores=replace(group.scores, flops=flops))


def test_flops_of_a_scorer_are_there_when_those_of_every_group_are_known() -> None:
    """A group that it scored before took none; one of which they are unknown leaves no sum."""
    scores = {"adherence": [1.0, 0.5], "physics": [0.0, 1.0]}
    row = _row(
        with_flops(scored_group("a", scores), adherence=3e12, physics=1e12),
        with_flops(scored_group("b", scores), adherence=0.0),
    )
    check_names(row)
    assert row["rewards/adherence/tflop"] == 3.0
    assert "rewards/physics/tflop" not in row
    assert row["rollout/clips/count"] == 4.0
    known_before = _row(with_flops(scored_group("a", scores), adherence=0.0, physics=0.0))
    assert not [name for name in known_before if name.endswith("/tflop")]


def test_flops_of_a_scorer_are_of_the_groups_that_asked_it() -> None:
    row = _row(
        with_flops(scored_group("a", {"adherence": [1.0], "physics": [0.0]}), physics=2e12),
        with_flops(scored_group("b", {"adherence": [1.0]})),
    )
    assert row["rewards/physics/tflop"] == 2.0
