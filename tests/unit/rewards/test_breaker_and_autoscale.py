"""When a replica is left alone, and how many there should be, with a clock turned by hand."""

from __future__ import annotations

from rlvid.rewards.breaker import BreakerSettings, CircuitBreaker
from rlvid.rewards.dispatch.autoscale import GROW_AFTER_S, SHRINK_AFTER_S, Autoscaler

SETTINGS = BreakerSettings()
FAILURES_TO_OPEN, WINDOW = SETTINGS.max_failures, SETTINGS.window
FIRST_PAUSE_S, LONGEST_PAUSE_S = SETTINGS.open_s, SETTINGS.max_open_s


def opened(now: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker()
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(now, "played")
    return breaker


def test_failures_in_a_row_open_it_and_a_success_between_does_not() -> None:
    breaker = CircuitBreaker()
    for number in range(3 * FAILURES_TO_OPEN):
        breaker.failed(0.0, "played") if number % FAILURES_TO_OPEN else breaker.succeeded()
    assert breaker.allows(0.0)
    assert not opened().allows(0.0)


def test_a_share_of_failures_opens_it_though_some_succeed() -> None:
    """A replica that fails every second call is no good either."""
    breaker = CircuitBreaker()
    for _ in range(WINDOW // 2):
        breaker.succeeded()
        breaker.failed(0.0, "played")
    assert breaker.is_open(0.0)


def test_half_open_lets_one_call_through_and_its_success_closes() -> None:
    breaker = opened()
    now = FIRST_PAUSE_S + 0.1
    assert breaker.allows(now)
    breaker.call_started()
    assert not breaker.allows(now)
    breaker.succeeded()
    assert breaker.allows(now)


def test_failed_trials_double_the_pause_up_to_a_bound() -> None:
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(8):
        start = now
        while not breaker.allows(now):
            now += 0.5
        pauses.append(now - start)
        breaker.call_started()
        breaker.failed(now, "played")
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_a_burst_of_failures_does_not_lengthen_the_pause() -> None:
    """All calls that were in flight when a replica died fail, and are one death."""
    breaker = opened()
    for _ in range(3 * FAILURES_TO_OPEN):
        breaker.failed(0.5, "played")
    assert breaker.wait_s(0.5) == FIRST_PAUSE_S - 0.5
    assert breaker.num_openings == 1


def test_a_hang_opens_it_at_once_for_as_long_as_it_cost() -> None:
    breaker = CircuitBreaker()
    breaker.failed(0.0, "hung", opens_for_s=120.0)
    assert breaker.is_open(119.0)
    assert not breaker.is_open(121.0)


def test_a_call_that_was_taken_back_leaves_the_trial_to_another() -> None:
    breaker = opened()
    now = FIRST_PAUSE_S + 0.1
    breaker.call_started()
    breaker.call_withdrawn()
    assert breaker.allows(now)


def test_a_long_queue_adds_a_replica_only_when_it_stays_long() -> None:
    """A burst of one step is gone before a replica has opened."""
    scaler = Autoscaler(1, 4, batch_size=8)

    def wanted(now: float, queued: int) -> int:
        return scaler.wanted(now, queued=queued, num_replicas=1, num_busy=1)

    assert wanted(0.0, 100) == 1
    assert wanted(GROW_AFTER_S - 0.1, 0) == 1
    assert wanted(GROW_AFTER_S, 100) == 1
    assert wanted(2 * GROW_AFTER_S, 100) == 2


def test_an_idle_replica_goes_but_never_the_last_wanted() -> None:
    scaler = Autoscaler(1, 4, batch_size=8)
    for num_replicas, left in ((2, 1), (1, 1)):
        start = 1000.0 * num_replicas
        assert scaler.wanted(start, queued=0, num_replicas=num_replicas, num_busy=0) in (1, 2)
        later = start + SHRINK_AFTER_S
        assert scaler.wanted(later, queued=0, num_replicas=num_replicas, num_busy=0) == left


def test_bounds_hold_at_once() -> None:
    scaler = Autoscaler(2, 3, batch_size=8)
    assert scaler.wanted(0.0, queued=0, num_replicas=0, num_busy=0) == 2
    assert scaler.wanted(0.0, queued=0, num_replicas=5, num_busy=5) == 3
