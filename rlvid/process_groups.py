"""Process groups of our own, beside torch.distributed's default one, and where they meet.

The default group is the learner's. A group from here can break, be left and be formed anew without
touching it, and several may be in one process.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import distributed as dist

GroupBackend = Literal["nccl", "gloo"]
_C10D: Any = dist
"""Stores and groups are public in torch's documentation and untyped in its stubs."""


def open_store(host: str) -> tuple[Any, int]:
    """Listen on one address only, torch by itself would on all; return the store and its port.

    Args:
        host: address of this machine that the members can reach.
    """
    listener = socket.create_server((host, 0))
    port = int(listener.getsockname()[1])
    store = _C10D.TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    return store, port


def join_store(host: str, port: int, token: str, deadline: timedelta) -> Any:
    """Connect to such a store; without the unguessable token nobody meets there."""
    store = _C10D.TCPStore(host, port, is_master=False, timeout=deadline)
    return _C10D.PrefixStore(token, store)


def open_backend(
    backend: GroupBackend, store: Any, rank: int, size: int, *, deadline: timedelta, host: str
) -> Any:
    """Meet the others at the store; torch's class of the backend by itself.

    Args:
        deadline: of meeting, and of each operation.
        host: what the store was opened with.

    Raises:
        RuntimeError: not all came in time.
    """
    if backend == "nccl":
        settings = _C10D.ProcessGroupNCCL.Options()
        settings._timeout = deadline
        return _C10D.ProcessGroupNCCL(store, rank, size, settings)
    create: Any = _C10D.ProcessGroupGloo
    options = create._Options()
    options._timeout = deadline
    # Gloo listens where this machine's name leads, which may be any network, unless it is told.
    is_local = host.startswith("127.")
    options._devices = [
        create.create_device(hostname=host) if is_local else create.create_default_device()
    ]
    return create(store, rank, size, options)


def open_group(
    backend: GroupBackend, store: Any, rank: int, size: int, *, deadline: timedelta, host: str
) -> dist.ProcessGroup:
    """As `open_backend`, as a group that the functions of torch.distributed take."""
    mine = open_backend(backend, store, rank, size, deadline=deadline, host=host)
    kinds = _C10D.ProcessGroup.BackendType
    kind = kinds.NCCL if backend == "nccl" else kinds.GLOO
    group: Any = _C10D.ProcessGroup(store, rank, size)
    group._set_default_backend(kind)
    device = torch.device("cuda" if backend == "nccl" else "cpu")
    group._register_backend(device, kind, mine)
    joined: dist.ProcessGroup = group
    return joined
