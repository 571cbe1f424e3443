"""The Ray cluster of a run: started here for one machine, or joined by address."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rlvid.config import ClusterConfig, Recipe
from rlvid.config.base import is_set
from rlvid.launch.cluster_guard import guarded
from rlvid.launch.cluster_nodes import alive_nodes
from rlvid.launch.demand import ClusterError, check_demand, demanded, short_groups
from rlvid.process_env import own_cluster

logger = logging.getLogger(__name__)

CONNECT_DEADLINE_S = 5.0
"""For a connection to the head of a cluster that is to be joined."""
MAX_PORT = 2**16 - 1


@contextmanager
def open_cluster(recipe: Recipe) -> Iterator[None]:
    """Have Ray for the length of the block.

    Raises:
        ClusterError: roles ask for more GPUs or CPUs than there are, or no cluster answers.
    """
    import ray

    config = recipe.cluster
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Not Ray's 15: who starts should go before who works, and those go to the end by themselves.
    os.environ.setdefault("RAY_worker_niceness", "0")
    want = demanded(recipe, grown=True)
    is_own = config.address is None
    with guarded() if is_own else nullcontext(), own_cluster() if is_own else nullcontext():
        with keep_sigterm_handler():
            _connect(config, want)
        try:
            check_demand(recipe, ray.cluster_resources())
            for line in short_groups(recipe, alive_nodes()):
                logger.warning(line)
            yield
        finally:
            ray.shutdown()


@contextmanager
def keep_sigterm_handler() -> Iterator[None]:
    """Give SIGTERM back to whoever had it: `ray.init` makes it a plain exit."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if before not in (None, signal.SIG_DFL) and _is_main_thread():
        signal.signal(signal.SIGTERM, before)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _connect(config: ClusterConfig, want: dict[str, float]) -> None:
    """Start Ray here, or join the cluster of the address; ClusterError when none answers."""
    import ray

    if config.address is None:
        ray.init(
            address="local",  # else RAY_ADDRESS, or a cluster that `ray start` left here, is joined
            num_cpus=config.num_cpus or math.ceil(want["CPU"]),
            include_dashboard=False,
            _metrics_export_port=config.metrics_port,
            object_store_memory=config.object_store_mb * 2**20,
            logging_level=logging.ERROR,
            log_to_driver=bool(os.environ.get("RLVID_ACTOR_LOGS")),
        )
        return
    if is_set(config, "object_store_mb"):
        logger.warning(
            "cluster.object_store_mb: is of a cluster that the run starts, got %s with address %r: "
            "the nodes have what `ray start --object-store-memory` gave them",
            config.object_store_mb,
            config.address,
        )
    join(config.address)


def join(address: str) -> None:
    """Join a cluster that is up; ClusterError when none answers."""
    _check_answers(address)
    import ray

    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise ClusterError(
            f"cluster.address: no Ray cluster answers at {address!r} "
            f"({str(error).splitlines()[0]}); start it with `ray start --head`, or leave "
            "cluster.address out to run on this machine"
        ) from error


def _check_answers(address: str) -> None:
    """Connect to HOST:PORT for a moment: where nothing listens, Ray itself goes on for minutes.

    "auto" and ray://HOST:PORT are left to Ray, which fails soon with those.

    Raises:
        ClusterError: nothing listens there.
        ValueError: it is no address, which no waiting would mend.
    """
    if address == "auto" or "://" in address:
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > MAX_PORT:
        raise ValueError(
            "cluster.address: expected HOST:PORT, as `ray start --head` prints it, "
            f"ray://HOST:PORT or auto, got {address!r}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_DEADLINE_S).close()
    except OSError as error:
        raise ClusterError(
            f"cluster.address: expected a Ray cluster at {address!r}, nothing answers there "
            f"({error}; waited {CONNECT_DEADLINE_S:.0f} s at most); start it with `ray start "
            f"--head --port={port}`, or leave cluster.address out to run on this machine"
        ) from error
