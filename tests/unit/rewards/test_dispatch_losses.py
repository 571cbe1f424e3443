"""What the pool does when processes, clips or files are lost."""

from __future__ import annotations

import pytest

from rlvid.rewards.base import ClipSpec, RewardError, RewardTimeoutError
from rlvid.rewards.dispatch.pool_group import PoolGroup
from rlvid.rewards.dispatch.processes import Decode, ScoreBatch
from rlvid.rewards.scoring import ItemResult
from tests.unit.rewards.played_pool import Pool, clips_of, items, one


def test_a_lost_process_is_replaced_and_loses_nothing() -> None:
    """The call it worked on is tried again, clip by clip; the one behind it was never tried.

    Nothing waits behind a clip that may end the process: an answer that is done may die with it
    before it is sent, and a clip that did no harm would have spent its attempts.
    """
    pool = Pool(one(batch_size=2))
    pool.submit(1, 4)
    working, waiting = pool.batches("x")
    pool.die(working)
    assert pool.dispatcher.num_replaced == 1
    assert [items(call) for call in pool.batches("x")] == [items(waiting)]
    pool.answer_all("x")
    pool.wait(0.2)
    for _ in range(2):
        (alone,) = pool.batches("x")
        assert len(alone.items) == 1
        pool.answer(alone)
    assert None not in pool.values(1)


def test_processes_that_die_without_a_score_between_them_stop_the_run() -> None:
    pool = Pool(one(), max_attempts=99)
    pool.submit(1, 1)

    def let_all_die() -> None:
        for _ in range(10):
            for call in pool.batches("x"):
                pool.die(call)
            pool.wait(6.0)

    with pytest.raises(RewardError, match="5 replicas of x failed with nothing scored"):
        let_all_die()


def test_a_process_that_dies_while_it_opens_for_the_first_time_stops_the_run() -> None:
    """Memory or a native crash; another start would end the same way."""
    pool = Pool(one(), opens=False)
    process = next(p for p, names in pool.alive.items() if names == ("x",))
    with pytest.raises(RewardError, match=r"a replica of x died while it opened \(no memory\)"):
        pool.dispatcher.lost(process, "no memory", pool.now)


def test_a_replacement_that_cannot_open_is_replaced_again() -> None:
    pool = Pool(one(num_replicas=2))
    process = next(p for p, names in pool.alive.items() if names == ("x",))
    pool.opens = False
    pool.dispatcher.lost(process, "it died", pool.now)
    pool.poll()
    pool.dispatcher.open_failed(max(pool.alive), OSError("disk full"), pool.now)
    pool.opens = True
    pool.poll()
    assert sum(names == ("x",) for names in pool.alive.values()) == 2
    assert pool.dispatcher.num_replaced == 2


def test_clips_lost_with_their_node_are_decoded_again_and_only_what_is_lacking_scored() -> None:
    pool = Pool([*one(), {"use": "realism"}])
    pool.submit(1, 2)
    pool.answer_all("realism")
    [call] = pool.batches("x")
    pool.calls.clear()
    pool.dispatcher.frames_lost(call.call.call_id, pool.now)
    pool.poll()
    [decode] = pool.calls
    assert isinstance(decode, Decode)
    pool.calls.clear()
    pool.dispatcher.decoded(decode.call.call_id, clips_of(1, 2), "new frames", pool.now)
    pool.poll()
    [again] = pool.calls
    assert isinstance(again, ScoreBatch)
    assert (again.call.service, again.frames) == ("x", ("new frames",))
    pool.answer(again)
    assert pool.values(1) == pool.values(1, "realism") == [0.5, 0.5]


def test_a_group_whose_clips_are_lost_still_ends_at_its_first_deadline() -> None:
    pool = Pool(one(), deadline_s=10.0)
    pool.submit(1, 2)
    pool.wait(9.0)
    [call] = pool.batches("x")
    pool.calls.clear()
    pool.dispatcher.frames_lost(call.call.call_id, pool.now)
    pool.poll()
    pool.wait(1.1)
    assert pool.values(1) == [None, None]
    [decode] = pool.calls
    pool.dispatcher.decoded(decode.call.call_id, clips_of(1, 2), "too late", pool.now)
    pool.poll()
    assert pool.batches("x") == []


def test_lost_clips_are_not_sent_before_they_are_decoded_again() -> None:
    """The replica dies with the node that held the clips: what it had may not go out without."""
    pool = Pool(one(num_replicas=2, batch_size=2))
    pool.submit(1, 4)
    first, second = pool.batches("x")
    pool.calls.remove(first)
    pool.dispatcher.frames_lost(first.call.call_id, pool.now)
    pool.die(second)
    pool.wait(3.0)
    assert pool.batches("x") == []
    [decode] = pool.calls
    pool.calls.clear()
    pool.dispatcher.decoded(decode.call.call_id, clips_of(1, 4), "new frames", pool.now)
    pool.wait(3.0)
    assert all(batch.frames == ("new frames",) for batch in pool.batches("x"))
    pool.answer_all("x")
    assert pool.values(1) == [0.5] * 4


def test_a_process_is_not_late_while_its_servers_start() -> None:
    """A server may take ten minutes to load; cluster.start_deadline_s is of processes."""
    pool = Pool(one(), opens=False)
    for process_id in pool.alive:
        pool.dispatcher.waits_for_servers(process_id, True, pool.now)
    pool.wait(600.0)
    assert len(pool.alive) == 2
    for process_id in list(pool.alive):
        pool.dispatcher.waits_for_servers(process_id, False, pool.now)
    pool.wait(59.0)
    pool.dispatcher.poll(pool.now)
    with pytest.raises(RewardTimeoutError, match="did not open in 60 s. Lower num_cpus"):
        pool.wait(2.0)


def sent_file(pool: Pool, ticket: int, labels: tuple[str, ...]) -> Decode:
    """Submit a file that somebody sent; returns the call that decodes it."""
    group = PoolGroup(ticket, payload="files", promised=clips_of(ticket, 1), labels=labels)
    pool.dispatcher.submit(group, pool.now)
    pool.poll()
    decode = pool.calls.pop()
    assert isinstance(decode, Decode)
    return decode


def test_a_sent_file_that_one_scorer_does_not_take_is_missing_there_and_ends_nothing() -> None:
    """A service lives on, whatever clip it is sent; the other scorer scores it."""
    pool = Pool([*one(), {"use": "realism"}], clip_specs={"x": ClipSpec(fps=16)})
    decode = sent_file(pool, 1, ("x", "realism"))
    pool.dispatcher.decoded(decode.call.call_id, clips_of(1, 1), "frames", pool.now)
    pool.poll()
    pool.answer_all("realism")
    assert pool.values(1, "realism") == [0.5]
    assert pool.values(1) == [None]
    assert "needs clips with fps 16" in str(pool.done[1].scores[0].error)


def test_a_sent_file_that_kills_every_decoder_is_missing_and_ends_nothing() -> None:
    pool = Pool(one(), max_attempts=3)
    decode: Decode | ScoreBatch = sent_file(pool, 1, ("x",))
    for _ in range(3):
        pool.dispatcher.lost(decode.call.process_id, "out of memory", pool.now)
        pool.wait(10.0)
        decode = pool.calls.pop() if pool.calls else decode
    assert pool.values(1) == [None]
    assert "out of memory" in str(pool.done[1].scores[0].error)
    pool.submit(2, 2)
    pool.answer_all("x")
    assert pool.values(2) == [0.5, 0.5]


def test_who_is_scaled_away_finishes_what_it_has_first() -> None:
    """Both calls of the leaving replica are answered by it; it gets no third, and then ends."""
    pool = Pool(one(num_replicas=2, batch_size=2))
    for ticket in range(4):
        pool.submit(ticket, size=2)
    assert len(pool.batches("x")) == 4
    pool.dispatcher.scale("x", 1)
    pool.poll()
    assert pool.dispatcher.num_replicas("x") == 1
    assert len([services for services in pool.alive.values() if services == ("x",)]) == 2
    pool.answer_all("x")
    assert pool.values(0) == pool.values(3) == [0.5, 0.5]
    assert len([services for services in pool.alive.values() if services == ("x",)]) == 1
    assert pool.dispatcher.num_replaced == 0


def test_a_late_answer_of_a_process_given_up_counts_for_nobody() -> None:
    """It was stopped, its clips went to another, and then it goes on and answers."""
    pool = Pool(one(deadline_s=5.0, num_replicas=2), max_attempts=3)
    pool.submit(1, size=2)
    [stopped] = pool.batches("x")
    pool.wait(5.5)
    [again] = pool.batches("x")
    assert again.call.process_id != stopped.call.process_id
    late = [
        ItemResult(item_id=item.item_id, value=99.0, error="", is_failure=False)
        for item in stopped.items
    ]
    pool.dispatcher.scored(stopped.call.call_id, late, 0.1, pool.now)
    pool.poll()
    assert not pool.done
    pool.answer(again)
    assert pool.values(1) == [0.5, 0.5]


def test_a_stopped_process_loses_its_clips_to_a_successor_long_before_the_groups_deadline() -> None:
    """Its call has as long as the group: by that alone nothing would be left to score again in."""
    pool = Pool(one(deadline_s=120.0), deadline_s=120.0, heartbeat_s=5.0, stall_s=20.0)
    pool.submit(1, 2)
    [call] = pool.batches("x")
    pool.silent.add(call.call.process_id)
    pool.wait(26.0)
    assert call.call.process_id not in pool.alive
    for _ in range(2):  # alone, since they may be what stopped it
        [again] = pool.batches("x")
        pool.answer(again)
        pool.wait(0.1)
    assert pool.values(1) == [0.5, 0.5]


def test_a_process_that_answers_late_but_in_time_is_kept_and_asked_again() -> None:
    pool = Pool(one(), heartbeat_s=5.0, stall_s=20.0)
    [process] = (p for p, names in pool.alive.items() if names == ("x",))
    pool.silent.add(process)
    pool.wait(24.0)
    pool.silent.clear()
    pool.dispatcher.answered(process, pool.now)
    pool.wait(30.0)
    assert process in pool.alive
    assert pool.dispatcher.num_replaced == 0


def test_silence_counts_only_once_one_of_the_kind_has_opened() -> None:
    """Imports keep a process from answering, the first time from a cold disk."""
    pool = Pool(one(), opens=False, stall_s=20.0)
    pool.silent.update(pool.alive)
    pool.wait(50.0)
    assert pool.dispatcher.num_replaced == 0
