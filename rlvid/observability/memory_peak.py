"""The most memory a process has held so far, to be compared with its plan."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

MIB = 2**20


class OwnPeak:
    """The most RAM a process has held for itself, as far as looks at it show.

    Pages that it shares through /dev/shm are not its own: each object that Ray's store ever handed
    it stays in its resident set, whose peak (VmHWM) would say how much of the store it has seen.
    Where that peak has risen since the last look, what it shares now was shared then; so looks
    should be frequent, or come after each piece of work.
    """

    def __init__(self, process: Path) -> None:
        """`process` is its folder in /proc."""
        self._status = process / "status"
        self._resident = 0
        self.mib = 0.0

    def look(self) -> float:
        """Return MiB so far.

        Raises:
            FileNotFoundError, ProcessLookupError: it has ended.
        """
        lines = (line.split() for line in self._status.read_text().splitlines())
        kib = {line[0]: int(line[1]) for line in lines if line[0].startswith(("VmHWM", "Rss"))}
        if "VmHWM:" not in kib:
            return self.mib  # it is ending
        own = kib["RssAnon:"] + kib["RssFile:"]
        if kib["VmHWM:"] > self._resident:
            own = max(own, kib["VmHWM:"] - kib["RssShmem:"])
        self._resident = kib["VmHWM:"]
        self.mib = max(self.mib, own / 1024)
        return self.mib


_own = OwnPeak(Path("/proc/self"))


def peak_mib() -> float:
    """Return the MiB that torch held on this process's GPU, or without one those in RAM.

    On a GPU it is what tensors took, without CUDA's own and what torch keeps free; in RAM all that
    is the process's own, Python and libraries too.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / MIB
    if sys.platform == "linux":
        return _own.look()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024
