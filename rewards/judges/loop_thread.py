"""An event loop in a thread of its own, so that a scorer, which is called, can be a client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for other threads; a daemon, since a scorer is never told of its end."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="judge-client", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """Return what the coroutine returns, or raise what it raises; TimeoutError when late."""
        task = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return task.result(timeout=timeout_s)
        except TimeoutError:
            task.cancel()
            raise

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5.0)
        if not self._thread.is_alive():
            self._loop.close()
