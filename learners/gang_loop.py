"""The thread that watches the gang: hears answers and heartbeats, tells those who wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar, cast

from rlvid.bell import Bell
from rlvid.learners.calls import CallQueue, Settled
from rlvid.ray_errors import ACTOR_LOST, cause_of, first_line

MAX_BEAT_S = 5.0
"""Longest time between two heartbeats."""

Answer = TypeVar("Answer")


class Pending(Generic[Answer]):
    """What a call on the gang will answer. Any thread may ask."""

    def __init__(
        self,
        number: int,
        finish: Callable[[tuple[Any, ...]], Answer],
        explain: Callable[[Exception], Exception],
    ) -> None:
        self.number = number
        self._finish = finish
        self._explain = explain
        self._done = threading.Event()
        self._value: Any = None
        self._error: Exception | None = None

    def poll(self) -> bool:
        """Return whether the answer is there; never waits.

        Raises:
            LearnerLostError: a rank died, is late or silent.
            Exception: what the call raised on the ranks.
        """
        if not self._done.is_set():
            return False
        if self._error is not None:
            raise self._error
        return True

    def result(self) -> Answer:
        """Return the answer, or raise as `poll`; waits for it, at most to the call's deadline."""
        self._done.wait()
        self.poll()
        return cast(Answer, self._value)

    def settle(self, settled: Settled) -> None:
        """Take the end of the call; makes of the ranks' answers what the caller wants."""
        self._error = _own(settled)
        if self._error is not None:
            self._error = self._explain(self._error)
        else:
            try:
                self._value = self._finish(settled.answers)
            except Exception as error:
                self._error = error
        self._done.set()


class GangLoop:
    """Keeps the calls of one gang, from the first to the end of its processes."""

    def __init__(self, num_ranks: int, *, stall_s: float, bell: Bell | None) -> None:
        self._queue = CallQueue(num_ranks, stall_s=stall_s)
        self._beat_s = min(stall_s / 8.0, MAX_BEAT_S)
        self._bell = bell
        self._pending: dict[int, Pending[Any]] = {}
        self._changed = threading.Condition()
        self._order = threading.Lock()
        self._stops = False
        self._beat: Callable[[int], Any] | None = None
        self._unanswered: set[int] = set()
        self._next_beat_s = 0.0
        self._num_ranks = num_ranks
        # Fetching and committing take their time, and the heartbeats must not wait for them.
        self._finisher = ThreadPoolExecutor(1, thread_name_prefix="learner-finish")
        self._thread = threading.Thread(target=self._run, name="learner-gang", daemon=True)
        self._thread.start()

    def begin(
        self,
        doing: str,
        give: Callable[[], Sequence[Any]],
        finish: Callable[[tuple[Any, ...]], Answer],
        *,
        deadline_s: float,
        has_progress: bool = False,
        explain: Callable[[Exception], Exception] = lambda error: error,
    ) -> Pending[Answer]:
        """Give all ranks a call and return what it will answer.

        Args:
            give: makes the calls, one reference a rank.
            finish: makes the caller's answer of the ranks' answers, in a thread of its own.
            explain: returns what to raise for a failure, there as well.
        """
        # The order of numbers is the order at the ranks. Ray is never called with the state locked:
        # its own threads wait for that lock to hand answers in.
        with self._order:
            with self._changed:
                number = self._queue.add(
                    doing, deadline_s, time.monotonic(), has_progress=has_progress
                )
                pending = Pending(number, finish, explain)
                self._pending[number] = pending
                is_lost = self._queue.lost is not None
                self._changed.notify()
            if not is_lost:
                for rank, reference in enumerate(give()):
                    self._hear(reference, partial(self._came, number, rank))
        return pending

    def set_deadline(self, pending: Pending[Any], deadline_s: float) -> None:
        """Let a call end that many seconds from now at the latest."""
        with self._changed:
            self._queue.set_deadline(pending.number, deadline_s, time.monotonic())
            self._changed.notify()

    def listen(self, beat: Callable[[int], Any]) -> None:
        """Ask the ranks for signs of life from now on; `beat` asks one and returns a reference."""
        with self._changed:
            self._beat = beat
            self._queue.listen(time.monotonic())
            self._changed.notify()

    def check(self) -> None:
        """Raise LearnerLostError if the gang is lost, also while no call waits."""
        with self._changed:
            if self._queue.lost is not None:
                raise self._queue.lost

    def stop(self) -> None:
        """End the thread; calls that wait fail as lost."""
        with self._changed:
            self._stops = True
            self._changed.notify()
        self._thread.join(timeout=10.0)
        self._finisher.shutdown(wait=False)

    def _hear(self, reference: Any, handle: Callable[[Future[Any]], None]) -> None:
        reference.future().add_done_callback(handle)

    def _came(self, number: int, rank: int, future: Future[Any]) -> None:
        """Take a rank's part of a call; in a thread of Ray's."""
        error = future.exception()
        now = time.monotonic()
        with self._changed:
            if error is None:
                self._queue.answered(number, rank, future.result())
            elif isinstance(error, ACTOR_LOST):
                self._queue.died(rank, first_line(error), now)
            else:
                self._queue.failed(number, rank, cast(Exception, error), now)
            self._changed.notify()

    def _beaten(self, rank: int, future: Future[Any]) -> None:
        error = future.exception()
        now = time.monotonic()
        with self._changed:
            self._unanswered.discard(rank)
            if error is None:
                self._queue.heard(rank, int(future.result()), now)
            elif isinstance(error, ACTOR_LOST):
                self._queue.died(rank, first_line(error), now)
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                if self._stops:
                    self._queue.died(0, "the driver ended it", now - 3600.0)
                was_lost = self._queue.lost is not None
                settled = self._queue.poll(now)
                if self._queue.lost is not None and not was_lost and self._bell is not None:
                    self._bell.ring()
                waiters = [(self._pending.pop(one.number), one) for one in settled]
                silent = self._due_beats(now)
                if not settled and not silent and not self._stops:
                    wakeup = min(self._queue.next_wakeup(now), self._next_beat_s or now + 3600.0)
                    self._changed.wait(max(wakeup - now, 0.0))
            for rank in silent:
                self._send_beat(rank)
            for pending, one in waiters:
                self._settle(pending, one)
            if self._stops and not waiters:
                return

    def _settle(self, pending: Pending[Any], settled: Settled) -> None:
        def settle() -> None:
            pending.settle(settled)
            if self._bell is not None:
                self._bell.ring()

        self._finisher.submit(settle)

    def _due_beats(self, now: float) -> list[int]:
        """Return the ranks to ask for a sign of life now; one that owes an answer is not asked."""
        if self._beat is None or self._queue.lost is not None or self._stops:
            self._next_beat_s = 0.0
            return []
        if now < self._next_beat_s:
            return []
        self._next_beat_s = now + self._beat_s
        due = [rank for rank in range(self._num_ranks) if rank not in self._unanswered]
        self._unanswered.update(due)
        return due

    def _send_beat(self, rank: int) -> None:
        assert self._beat is not None, "no beat is due before there is one to send"
        self._hear(self._beat(rank), partial(self._beaten, rank))


def _own(settled: Settled) -> Exception | None:
    """Return what the caller is to see of an error: the rank's own, not Ray's wrapping."""
    error = settled.error
    if error is None or settled.failed_rank is None:
        return error
    cause = cause_of(error)
    cause.add_note(f"learner rank {settled.failed_rank}, while {settled.doing}")
    return cause
