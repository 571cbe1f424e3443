"""Optimiser state in files instead of memory, for a host that is short of it.

The tensors are ordinary ones, over a memory-mapped file: the kernel keeps in memory what it has
room for and writes back the rest, so the optimiser, checkpoints and every ZeRO stage are those
without it. An optimiser step reads and writes each once, in order. The file has no name, and goes
with its tensor, a killed rank's too.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor


def disk_zeros(folder: Path, num_elements: int) -> Tensor:
    """Return float32 zeros [num_elements] that lie in a file of this folder.

    Raises:
        OSError: no folder can be made there, or its disk has no room; the room is taken at once,
            since a write to a mapped page without room behind it would kill the process.
    """
    num_bytes = num_elements * torch.float32.itemsize
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="optimizer-") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            raise OSError(
                error.errno,
                f"learner.offload.folder: {folder}: no room for the optimiser's state: expected "
                f"{num_bytes / 1e9:.3g} GB for the next part of it, got '{error.strerror}'. "
                "Make room, or name a folder on another disk",
            ) from error
        return torch.from_file(file.name, shared=True, size=num_elements, dtype=torch.float32)
