"""Seconds and GPU memory of the phases of one process, apart."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class PhaseClock:
    """Adds up what phases take. One may be inside another, whose time stands still meanwhile."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.peak_bytes: dict[str, int] = {}
        """Most that torch had allocated on the GPU at once, weights included; empty on a CPU."""
        self._device = device
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens within to a phase; the GPU is waited for before and after."""
        self._change()
        self._open.append(name)
        try:
            yield
        finally:
            self._change()
            self._open.pop()

    def _change(self) -> None:
        """Give the innermost phase what went by since the last change."""
        on_cuda = self._device.type == "cuda"
        if on_cuda:
            torch.cuda.synchronize(self._device)
        if self._open:
            name = self._open[-1]
            self.seconds[name] += time.perf_counter() - self._since
            if on_cuda:
                peak = torch.cuda.max_memory_allocated(self._device)
                self.peak_bytes[name] = max(peak, self.peak_bytes.get(name, 0))
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        self._since = time.perf_counter()
