"""The most memory a process has held so far, to be compared with its plan."""

from __future__ import annotations

import resource
import sys

import torch

MIB = 2**20


def peak_mib() -> float:
    """Return the MiB that torch held on this process's GPU, or without one those in RAM.

    On a GPU it is what tensors took, without CUDA's own and what torch keeps free; in RAM all of
    the process, Python and libraries too.
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024
