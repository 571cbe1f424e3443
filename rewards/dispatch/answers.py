"""Where the pool's thread leaves what callers wait for."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import Any

from rlvid.bell import Bell
from rlvid.rewards.scoring import GroupScores

Ticket = int
"""What `RewardPool.submit` gives and `collect` returns it with."""


class Answers:
    """Tickets given out and what came of them; of any thread.

    An error of the pool ends every wait, now and later.
    """

    def __init__(self, bell: Bell | None = None) -> None:
        """`bell` is rung whenever `take` may have something, an error included."""
        self._bell = bell
        self._changed = threading.Condition()
        """Guards everything below."""
        self._error: BaseException | None = None
        self._is_ready = False
        self._done: deque[tuple[Ticket, GroupScores]] = deque()
        self._clips: dict[Ticket, Future[Any]] = {}
        self._num_tickets = 0
        self._num_outstanding = 0

    # Callers

    def new_ticket(self) -> Ticket:
        """Return the ticket of a group whose scores will be taken."""
        with self._changed:
            ticket = self._next_ticket()
            self._num_outstanding += 1
            return ticket

    def new_promise(self) -> tuple[Ticket, Future[Any]]:
        """Return the ticket of a group whose clips alone are wanted, and where they will be."""
        answer: Future[Any] = Future()
        with self._changed:
            ticket = self._next_ticket()
            self._clips[ticket] = answer
        return ticket, answer

    def wait_ready(self, timeout_s: float) -> bool:
        """Return whether all is up within `timeout_s`; raises the pool's error."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_ready or self._error, timeout_s)
            self._raise_error()
            return self._is_ready

    def take(self, timeout_s: float) -> list[tuple[Ticket, GroupScores]]:
        """Return what is done, waiting at most `timeout_s` for the first; raises the error."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._done or self._error or not self._num_outstanding, timeout_s
            )
            self._raise_error()
            done = list(self._done)
            self._done.clear()
            self._num_outstanding -= len(done)
            return done

    @property
    def num_outstanding(self) -> int:
        """Groups with a ticket that nobody has taken yet."""
        return self._num_outstanding

    # The pool's thread

    def ready(self) -> None:
        """Say that servers, scorers and decoder are up."""
        if not self._is_ready:
            with self._changed:
                self._is_ready = True
                self._changed.notify_all()

    def give(self, ticket: Ticket, scores: GroupScores, frames: Any) -> None:
        """Say what came of a group; its clips go to those who asked for clips."""
        with self._changed:
            answer = self._clips.pop(ticket, None)
            if answer is not None:
                answer.set_result(frames)
                return
            self._done.append((ticket, scores))
            self._changed.notify_all()
        self._ring()

    def fail(self, error: BaseException) -> None:
        """End all waits with the error."""
        with self._changed:
            self._error = error
            for answer in self._clips.values():
                answer.set_exception(error)
            self._clips.clear()
            self._changed.notify_all()
        self._ring()

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.ring()

    def _next_ticket(self) -> Ticket:
        self._raise_error()
        self._num_tickets += 1
        return self._num_tickets

    def _raise_error(self) -> None:
        if self._error:
            raise self._error
