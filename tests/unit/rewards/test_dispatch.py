"""The pool's decisions with processes that are played here and a clock that is turned by hand."""

from __future__ import annotations

import pytest

from rlvid.rewards.base import RewardError, Serving
from rlvid.rewards.decoding import ClipInfo
from rlvid.rewards.dispatch.pool_group import PoolGroup
from rlvid.rewards.dispatch.processes import Decode, ScoreBatch
from rlvid.rewards.scoring import ItemResult
from tests.unit.rewards.played_pool import Pool, clips_of, items, one

# Batching


def test_batches_are_filled_across_groups_in_order() -> None:
    """The first call leaves half full, for an idle replica gains nothing by waiting."""
    pool = Pool(one(batch_size=8))
    for ticket in (1, 2, 3, 4):
        pool.submit(ticket)
    first, second = pool.batches("x")
    assert items(first) == [(1, row) for row in range(4)]
    assert items(second) == [(t, row) for t in (2, 3) for row in range(4)]
    assert second.frames == ("frames 2", "frames 3")
    assert [item.source for item in second.items] == [0] * 4 + [1] * 4


def test_a_partial_batch_waits_only_while_more_clips_are_on_their_way() -> None:
    pool = Pool(one(batch_size=8, max_wait_s=0.5))
    pool.submit(1)
    assert len(pool.batches("x")) == 1  # nothing else is known to come
    pool.answer_all("x")
    pool.submit(2, decoded=False)
    pool.submit(3)
    assert pool.batches("x") == []
    pool.wait(0.49)
    assert pool.batches("x") == []
    pool.wait(0.02)
    assert len(pool.batches("x")) == 1


def test_a_full_batch_waits_for_nothing() -> None:
    pool = Pool(one(batch_size=4, max_wait_s=9.0))
    pool.submit(1, decoded=False)
    pool.submit(2)
    assert len(pool.batches("x")) == 1


def test_a_group_reward_gets_one_whole_group_whatever_the_batch_size() -> None:
    pool = Pool(one(batch_size=2), groupwise=["x"])
    pool.submit(1, 4)
    pool.submit(2, 3)
    assert [len(call.items) for call in pool.batches("x")] == [4, 3]


def test_the_replica_with_fewest_calls_gets_the_next() -> None:
    pool = Pool(one(batch_size=4, num_replicas=3))
    for ticket in range(3):
        pool.submit(ticket)
    assert len({call.call.process_id for call in pool.batches("x")}) == 3


def test_a_group_is_decoded_once_for_all_scorers() -> None:
    pool = Pool([*one(), {"use": "realism"}])
    pool.submit(1, decoded=False)
    [decode] = pool.calls
    assert isinstance(decode, Decode)
    pool.calls.clear()
    pool.dispatcher.decoded(decode.call.call_id, clips_of(1, 4), "frames", 0.1)
    pool.poll()
    assert {call.call.service for call in pool.calls} == {"x", "realism"}
    assert all(isinstance(c, ScoreBatch) and c.frames == ("frames",) for c in pool.calls)


# Ids


def test_scores_go_to_the_clips_whose_ids_they_carry() -> None:
    """A replica may answer in any order; ids travel with scores."""
    pool = Pool(one())
    pool.submit(1, 3)
    [call] = pool.batches("x")
    results = [ItemResult(item_id=(1, row), value=float(row)) for row in (2, 0, 1)]
    pool.dispatcher.scored(call.call.call_id, results, 0.1, pool.now)
    pool.poll()
    assert pool.values(1) == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("ids", [[(1, 0)], [(1, 0), (1, 0)], [(1, 0), (2, 1)]])
def test_an_answer_for_other_clips_stops_the_run(ids: list[tuple[int, int]]) -> None:
    """Too few, one twice, one that was never sent: some score would go to the wrong video."""
    pool = Pool(one())
    pool.submit(1, 2)
    [call] = pool.batches("x")
    results = [ItemResult(item_id=item_id, value=1.0) for item_id in ids]
    with pytest.raises(RewardError, match="'x': expected one result for each of 2 clips"):
        pool.dispatcher.scored(call.call.call_id, results, 0.1, pool.now)


# Retries


def test_a_clip_that_failed_is_tried_on_another_replica_after_a_pause() -> None:
    pool = Pool(one(num_replicas=2))
    pool.submit(1, 2)
    [call] = pool.batches("x")
    pool.answer(call, lambda ticket, row: None if row else 0.5)
    assert pool.batches("x") == []  # it backs off
    pool.wait(0.2)
    [again] = pool.batches("x")
    assert items(again) == [(1, 1)]
    assert again.call.process_id != call.call.process_id
    pool.answer(again)
    assert pool.values(1) == [0.5, 0.5]


def test_pauses_grow_and_the_last_attempt_leaves_the_clip_missing_with_the_reason() -> None:
    pool = Pool(one(), max_attempts=3)
    pool.submit(1, 1)
    starts = []
    while not pool.done:
        for call in pool.batches("x"):
            starts.append(pool.now)
            pool.answer(call, lambda ticket, row: None)
        pool.wait(0.01)
    assert len(starts) == 3
    assert starts[2] - starts[1] > starts[1] - starts[0] >= 0.05
    [score] = pool.done[1].scores
    assert (score.value, score.error) == (None, "OSError: played (attempt 3 of 3)")


def test_nan_is_missing_at_once() -> None:
    pool = Pool(one())
    pool.submit(1, 1)
    [call] = pool.batches("x")
    result = ItemResult(item_id=(1, 0), value=None, error="returned nan")
    pool.dispatcher.scored(call.call.call_id, [result], 0.1, pool.now)
    pool.poll()
    assert pool.done[1].scores[0].error == "returned nan"


# Deadlines and breakers


def test_a_group_ends_at_its_deadline_with_what_is_lacking_missing() -> None:
    pool = Pool([*one(), {"use": "realism"}], deadline_s=10.0)
    pool.submit(1, 2)
    pool.answer_all("realism")
    pool.wait(9.9)
    assert pool.done == {}
    pool.wait(0.2)
    assert pool.values(1, "realism") == [0.5, 0.5]
    assert pool.values(1, "x") == [None, None]
    assert "RewardTimeoutError: no score within rewards.deadline_s" in str(
        pool.done[1].scores[0].error
    )


def test_a_call_over_its_deadline_costs_the_replica_and_not_the_clip() -> None:
    pool = Pool(one(deadline_s=2.0), deadline_s=60.0)
    pool.submit(1, 2)
    [call] = pool.batches("x")
    pool.wait(2.5)
    [again] = pool.batches("x")
    assert again.call.process_id != call.call.process_id
    pool.answer(again)
    assert pool.values(1) == [0.5, 0.5]
    assert pool.dispatcher.num_replaced == 1


def test_a_late_answer_of_a_replaced_process_is_ignored() -> None:
    """A stopped process that goes on delivers what nobody waits for any more."""
    pool = Pool(one(deadline_s=2.0), deadline_s=60.0)
    pool.submit(1, 1)
    [call] = pool.batches("x")
    pool.wait(2.5)
    pool.dispatcher.scored(
        call.call.call_id, [ItemResult(item_id=(1, 0), value=9.0)], 0.1, pool.now
    )
    pool.answer_all("x")
    assert pool.values(1) == [0.5]


def test_a_hung_scorer_costs_one_deadline_once() -> None:
    """All that waits behind the hang, and what comes next, is missing at once."""
    pool = Pool(one(batch_size=2), deadline_s=10.0)
    for ticket in (1, 2, 3):
        pool.submit(ticket, 2)
    pool.wait(10.5)
    assert sorted(pool.done) == [1, 2, 3]
    pool.submit(4, 2)
    assert pool.values(4) == [None, None]
    assert "no replica is to be asked" in str(pool.done[4].scores[0].error)


def test_after_a_pause_one_call_tries_whether_the_scorer_works_again() -> None:
    pool = Pool(one(batch_size=2), deadline_s=10.0)
    pool.submit(1, 2)
    pool.wait(25.0)
    pool.submit(2, 2)
    pool.submit(3, 2)
    [trial] = pool.batches("x")
    pool.answer(trial)
    pool.answer_all("x")
    assert pool.values(2) == pool.values(3) == [0.5, 0.5]


# Scaling, resources, cache


def test_replicas_follow_the_queue_between_their_bounds() -> None:
    pool = Pool(one(batch_size=1, num_replicas=1, max_replicas=3))
    pool.submit(1, 60)

    def num_replicas() -> int:
        return sum(names == ("x",) for names in pool.alive.values())

    assert num_replicas() == 1
    pool.wait(30.0)
    assert num_replicas() == 3
    pool.answer_all("x")
    pool.wait(100.0)
    assert num_replicas() == 1


def test_scaling_down_by_hand_lets_a_replica_finish() -> None:
    pool = Pool(one(batch_size=2, num_replicas=2))
    pool.submit(1, 4)
    pool.dispatcher.scale("x", 1)
    pool.poll()
    assert len(pool.batches("x")) == 2
    pool.answer_all("x")
    assert None not in pool.values(1)
    assert sum(names == ("x",) for names in pool.alive.values()) == 1


def test_a_scorer_that_declares_other_resources_is_started_anew_with_them() -> None:
    """What it declares may be known only once it is open, in an environment of its own."""
    pool = Pool(one(python="/some/python"), serving=Serving(num_cpus=0.5, num_gpus=0.25))
    assert pool.resources[1:] == [(1.0, 0.0), (0.5, 0.25)]
    assert pool.dispatcher.incomplete == {}
    assert pool.dispatcher.num_replaced == 0


def test_a_known_clip_is_not_scored_again_and_a_missing_one_is() -> None:
    pool = Pool(one(), max_attempts=1)
    pool.submit(1, 2)
    pool.answer_all("x", lambda ticket, row: None if row else 0.5)
    assert pool.values(1) == [0.5, None]
    group = PoolGroup(2, payload=None, promised=None, labels=("x",))
    group.clips_are(clips_of(1, 2), "frames", pool.now)
    pool.dispatcher.submit(group, pool.now)
    pool.poll()
    [call] = pool.batches("x")
    assert items(call) == [(2, 1)]


def test_group_scores_are_known_only_for_the_same_group_in_the_same_order() -> None:
    pool = Pool(one(), groupwise=["x"])
    pool.submit(1, 2)
    pool.answer_all("x")
    for ticket, digests in ((2, ("1-0", "1-1")), (3, ("1-1", "1-0"))):
        info = clips_of(ticket, 2)
        group = PoolGroup(ticket, payload=None, promised=None, labels=("x",))
        fields = {name: getattr(info, name) for name in ClipInfo.__slots__}
        group.clips_are(ClipInfo(**{**fields, "digests": digests}), "frames", pool.now)
        pool.dispatcher.submit(group, pool.now)
        pool.poll()
    assert sorted(pool.done) == [1, 2]
    assert [len(call.items) for call in pool.batches("x")] == [2]


def test_exposed_tail_is_from_the_last_group_to_the_last_score() -> None:
    pool = Pool(one())
    pool.submit(1, 1)
    pool.wait(1.0)
    pool.submit(2, 1)
    pool.wait(0.25)
    pool.answer_all("x")
    row = pool.metrics.metrics(pool.dispatcher.live(), of_step=True)
    assert row["reward_pool/exposed_tail/seconds"] == pytest.approx(0.25, abs=1e-6)
    pool.metrics.start_step()
    row = pool.metrics.metrics(pool.dispatcher.live(), of_step=True)
    assert row["reward_pool/exposed_tail/seconds"] == 0.0
