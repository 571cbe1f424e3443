"""A VllmServer on the node that has its GPUs; adds nothing but the process and the watching."""

from __future__ import annotations

import threading
from pathlib import Path

import ray

from rlvid.config.rewards import ServerConfig
from rlvid.rewards.vllm.lease import slot_folder
from rlvid.rewards.vllm.server import ServerStatus, VllmServer

WATCH_EVERY_S = 0.5


@ray.remote(max_restarts=0, max_task_retries=0)
class VllmActor:
    """See VllmServer; a thread watches it, so that `status` answers at once whatever happens."""

    def __init__(
        self, config: ServerConfig, name: str, api_key: str, log_folder: str, index: int, run: str
    ) -> None:
        """Assign only; `run` is the folder for which servers are kept, "" for none."""
        self._arguments = (config, name, api_key, log_folder, index, run)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def open(self, is_loopback: bool) -> ServerStatus:
        """Start the server, or attach to the one kept for us, and return at once.

        Raises:
            ValueError: a bad model folder or interpreter.
            RewardError: another driver of this run holds the kept server.
        """
        config, name, api_key, log_folder, index, run = self._arguments
        is_kept = bool(run and config.keep_s)
        slot = slot_folder(Path(run), name, index) if is_kept else None
        host = "127.0.0.1" if is_loopback else ray.util.get_node_ip_address()
        self._server = VllmServer(
            config,
            name=name,
            api_key=api_key,
            host=host,
            log_folder=log_folder if slot is None else slot / "logs",
            slot_folder=slot,
        )
        self._server.start()
        self._thread = threading.Thread(target=self._watch, name="vllm-watch", daemon=True)
        self._thread.start()
        return self._server.status

    def status(self) -> ServerStatus:
        """Return what is known; raises what ended the watching, e.g. a disk that is full."""
        if self._error is not None:
            raise self._error
        return self._server.status

    def stop(self, keeps: bool) -> None:
        """End the server and all its processes; returns when they are gone.

        Args:
            keeps: leave a server with `keep_s` to its lease instead.
        """
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=30.0)
            if keeps:
                self._server.let_go()
            else:
                self._server.stop()

    def _watch(self) -> None:
        while not self._stopping.wait(WATCH_EVERY_S):
            try:
                self._server.check()
            except Exception as error:  # carried to the driver by `status`
                self._error = error
                return
