"""The variables by which ranks on one machine find each other; Ray's actors have their own way."""

from __future__ import annotations

import os
import socket


def local_gang(num_ranks: int) -> dict[str, str]:
    """Return what `num_ranks` ranks here have in common, at a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_RANK": "0",
    }


def join_alone() -> None:
    """Make this process the only rank of a gang, on the CPU; before DeepSpeed is imported."""
    os.environ.update(local_gang(1), RANK="0", DS_ACCELERATOR="cpu")
