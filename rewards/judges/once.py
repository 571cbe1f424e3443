"""Values that are asked for once, however many coroutines want them at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")
MAX_ENTRIES = 8192


class Once(Generic[K, V]):
    """A cache of what was awaited; a failure is not kept. For one event loop."""

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K, ask: Callable[[], Awaitable[V]]) -> V:
        """Return the value of the key, from `ask` the first time."""

        async def awaited() -> V:
            return await ask()

        task = self._tasks.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            if len(self._tasks) >= MAX_ENTRIES:
                self._tasks = {k: t for k, t in self._tasks.items() if not t.done()}
            task = self._tasks[key] = asyncio.create_task(awaited())
        # Shielded: one caller that gives up must not take the others' answer away.
        return await asyncio.shield(task)
