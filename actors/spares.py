"""Processes kept ready beside the rollout actors, so that one that joins need not import anything.

A spare has imported what its worker needs and nothing more: it holds no policy and no place in the
cluster's count of cores. Who joins takes it; another is then made as soon as nobody else starts.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Spare:
    """One process."""

    actor: Any
    address: ray.ObjectRef
    is_ready: bool = False


class Spares:
    """At most `num_spares` of them; everything happens in the pool's thread."""

    def __init__(self, num_spares: int, *, post: Callable[[Callable[[], None]], None]) -> None:
        self._num_spares = num_spares
        self._post = post
        self._spares: deque[Spare] = deque()

    @property
    def lacks_one(self) -> bool:
        """Whether one should be made now; they are made one after another."""
        waits = bool(self._spares) and not self._spares[-1].is_ready
        return len(self._spares) < self._num_spares and not waits

    @property
    def num_ready(self) -> int:
        return sum(spare.is_ready for spare in self._spares)

    def add(self, actor: Any, prepared: ray.ObjectRef) -> None:
        """Keep a process that prepares itself."""
        spare = Spare(actor, actor.address.remote())
        self._spares.append(spare)
        handle = partial(self._on_prepared, spare)
        prepared.future().add_done_callback(lambda future: self._post(partial(handle, future)))

    def take(self) -> Spare | None:
        """Return one that is ready; it is the caller's from now on."""
        for spare in self._spares:
            if spare.is_ready:
                self._spares.remove(spare)
                return spare
        return None

    def kill_all(self) -> None:
        """End them."""
        while self._spares:
            ray.kill(self._spares.popleft().actor)

    def _on_prepared(self, spare: Spare, future: Future[Any]) -> None:
        error = future.exception()
        if error is None:
            spare.is_ready = True
        elif spare in self._spares:  # no actor was lost; the next one that joins starts by itself
            logger.warning("a spare process ended error=%r; no other is made in its place", error)
            self._num_spares -= 1
            self._spares.remove(spare)
