"""What the end of a Ray call says: that a process is gone, an object, or what the callee raised."""

from __future__ import annotations

from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

ACTOR_LOST = (RayActorError, OutOfMemoryError)
"""Raised for an actor that is gone; one that Ray's memory monitor killed is no RayActorError."""


def is_lost_object(error: BaseException) -> bool:
    """True when an argument of the call was lost with its node."""
    return isinstance(error, ObjectLostError) or isinstance(cause_of(error), ObjectLostError)


def cause_of(error: BaseException) -> Exception:
    """Return what the actor raised, which Ray wraps with a traceback for a message."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        return error.cause
    assert isinstance(error, Exception), f"a call does not end by {error!r}"
    return error


def first_line(error: BaseException) -> str:
    """Return its message in one line; Ray's own go on for a page."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
