"""Python's cycle collector held back while a process starts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Iterator[None]:
    """Import and load without the collector, and never look again at what is there afterwards.

    Importing diffusers makes a million objects that live as long as the process; the collector
    walks through them over and over, a quarter of the time that the imports take.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
