"""The bell that the driver's loop sleeps on."""

from __future__ import annotations

import threading

from rlvid.bell import Bell


def test_ring_before_the_wait_is_not_missed() -> None:
    """News may come between looking for it and going to sleep."""
    bell = Bell()
    bell.ring()
    assert bell.wait(0.0)
    assert not bell.wait(0.0)


def test_ring_from_another_thread_ends_the_wait() -> None:
    bell = Bell()
    threading.Timer(0.05, bell.ring).start()
    assert bell.wait(30.0)


def test_wait_without_a_ring_ends_after_its_timeout() -> None:
    assert not Bell().wait(0.01)
