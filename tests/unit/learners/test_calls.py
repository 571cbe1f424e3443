"""Calls on the gang, played in virtual time: order, deadlines, deaths, silence."""

from __future__ import annotations

import pytest

from rlvid.learners.calls import GRACE_S, CallQueue, LearnerLostError, Settled


def _queue(num_ranks: int = 2, stall_s: float = 10.0) -> CallQueue:
    return CallQueue(num_ranks, stall_s=stall_s)


def _lost(settled: list[Settled]) -> str:
    (one,) = settled
    assert isinstance(one.error, LearnerLostError)
    return str(one.error)


def test_calls_end_in_their_order_with_the_answers_of_all_ranks() -> None:
    """A fast rank may be two calls ahead; nobody hears of the second before the first."""
    queue = _queue()
    first, second = queue.add("a", 5.0, 0.0), queue.add("b", 5.0, 0.0)
    queue.answered(second, 0, "b0")
    queue.answered(second, 1, "b1")
    queue.answered(first, 0, "a0")
    assert queue.poll(1.0) == []
    queue.answered(first, 1, "a1")
    assert [(one.number, one.answers) for one in queue.poll(2.0)] == [
        (first, ("a0", "a1")),
        (second, ("b0", "b1")),
    ]


def test_deadline_counts_from_when_a_call_became_the_head() -> None:
    """Else a call that waits behind a long one would be late before it began."""
    queue = _queue(1)
    first, second = queue.add("a", 5.0, 0.0), queue.add("b", 5.0, 0.0)
    queue.answered(first, 0, None)
    assert [one.number for one in queue.poll(4.0)] == [first]
    assert queue.poll(8.9) == []
    assert queue.next_wakeup(8.9) == 9.0
    assert "rank 0 did not finish b within 5 s" in _lost(queue.poll(9.0))
    assert second == first + 1


def test_late_rank_is_named_and_all_calls_behind_are_lost() -> None:
    queue = _queue()
    first, second = queue.add("step 3", 5.0, 0.0), queue.add("publishing", 5.0, 0.0)
    queue.answered(first, 1, None)
    settled = queue.poll(5.0)
    assert [one.number for one in settled] == [first, second]
    assert "rank 0 did not finish step 3" in str(settled[1].error)
    third = queue.add("step 4", 5.0, 6.0)
    assert [one.number for one in queue.poll(6.0)] == [third]


def test_error_of_all_ranks_ends_the_call_and_not_the_gang() -> None:
    """A stale group is refused by every rank alike; the run may go on."""
    queue = _queue()
    call = queue.add("step 3", 5.0, 0.0)
    for rank in (1, 0):
        queue.failed(call, rank, ValueError(f"rank {rank}"), 1.0)
    (one,) = queue.poll(1.0)
    assert str(one.error) == "rank 0"
    assert one.failed_rank == 0
    assert queue.lost is None


def test_error_of_one_rank_ends_the_call_after_a_moment_and_the_gang() -> None:
    """The others wait for it in a collective, and would answer a later call out of step."""
    queue = _queue()
    call = queue.add("step 3", 100.0, 0.0)
    queue.failed(call, 1, ValueError("out of memory"), 1.0)
    assert queue.poll(1.0 + GRACE_S - 0.1) == []
    assert queue.next_wakeup(1.0) == 1.0 + GRACE_S
    (one,) = queue.poll(1.0 + GRACE_S)
    assert str(one.error) == "out of memory"
    assert queue.lost is not None
    assert "rank 1 failed in step 3" in str(queue.lost)


def test_death_is_reported_rather_than_the_errors_it_causes() -> None:
    """The other ranks see a broken connection first; the dead one must be named."""
    queue = _queue()
    call = queue.add("step 3", 100.0, 0.0)
    queue.failed(call, 0, RuntimeError("connection closed by peer"), 1.0)
    queue.died(1, "killed by signal 9", 1.5)
    assert queue.poll(1.0 + GRACE_S) == []
    message = _lost(queue.poll(1.5 + GRACE_S))
    assert "rank 1 died while step 3: killed by signal 9" in message


def test_death_while_idle_is_known_at_once() -> None:
    queue = _queue()
    queue.died(0, "killed", 1.0)
    assert queue.poll(1.0) == []
    assert "rank 0 died while idle" in str(queue.lost)


def test_stopped_rank_is_found_long_before_the_deadline() -> None:
    """Ray never notices SIGSTOP; the heartbeat of the stopped rank alone is missing."""
    queue = _queue(stall_s=10.0)
    queue.listen(0.0)
    queue.add("step 3", 600.0, 0.0, has_progress=True)
    for second in range(1, 10):
        queue.heard(0, second, float(second))
        assert queue.poll(float(second)) == []
    assert queue.next_wakeup(9.0) == 10.0
    assert "rank 1 gave no sign of life for 10 s while step 3" in _lost(queue.poll(10.0))


def test_ranks_that_live_and_do_not_move_are_stuck() -> None:
    """A deadlock in a collective: every heartbeat comes, no micro-batch is finished."""
    queue = _queue(stall_s=10.0)
    queue.listen(0.0)
    queue.add("step 3", 600.0, 0.0, has_progress=True)
    for second in range(1, 15):
        for rank in (0, 1):
            queue.heard(rank, min(second, 4) + rank, float(second))
        settled = queue.poll(float(second))
        if second < 14:
            assert settled == []
    assert "finished no micro-batch for 10 s" in _lost(settled)


@pytest.mark.parametrize("has_progress", [True, False])
def test_slow_call_that_moves_or_need_not_is_left_alone(has_progress: bool) -> None:
    """A checkpoint finishes no micro-batch; its own deadline is what it has."""
    queue = _queue(1, stall_s=10.0)
    queue.listen(0.0)
    queue.add("writing", 600.0, 0.0, has_progress=has_progress)
    for second in range(1, 60):
        queue.heard(0, second if has_progress else 0, float(second))
        assert queue.poll(float(second)) == []


def test_silence_before_the_ranks_have_loaded_is_no_stall() -> None:
    """Importing and loading hold the interpreter for minutes; heartbeats begin after."""
    queue = _queue(1, stall_s=10.0)
    queue.add("loading the policy", 600.0, 0.0)
    assert queue.poll(500.0) == []
