"""Supervises one vLLM server process: start, health, restart, stop. A plain class, no Ray.

start() -> starting --/health answers and one request went through--> ready
ready   --exit, or /health fails three times--> restarting --> ready, under the same URL
any     --more than max_restarts, or a first start that fails--> failed

With `keep_s` and a place to be found again, the server outlives its supervisor under a lease:
start() of the next one --same command, healthy--> ready, in a second; --else--> ended, and starting
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx

from rlvid.config.rewards import ServerConfig
from rlvid.rewards.vllm.command import (
    check_launch,
    model_digest,
    server_command,
    server_environment,
    server_folder,
)
from rlvid.rewards.vllm.lease import KeptServer, Slot
from rlvid.rewards.vllm.probe import Probe
from rlvid.rewards.vllm.process import (
    GRACE_S,
    KeptProcess,
    Launch,
    OwnProcess,
    ServerProcess,
    start_kept,
)

logger = logging.getLogger(__name__)

MAX_FAILED_CHECKS = 3
"""/health may fail so often in a row before a running server is killed and restarted."""
LOG_LINES = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """What a supervisor knows of its server."""

    state: Literal["starting", "ready", "restarting", "failed", "stopped"]
    url: str
    model_digest: str
    was_ready: bool
    """It has been ready before, so its URL stays good while it restarts."""
    num_restarts: int
    start_s: float
    """Seconds the last start took until the first answer."""
    group: int
    """Id of the group that holds every process of the server, its guard first; 0 for none."""
    is_reattached: bool
    """It was started by an earlier supervisor."""
    api_key: str = field(repr=False)
    """What it asks for: the supervisor's own, or that of the one before."""
    detail: str
    """Why it is not ready; with the last lines of its log when it failed."""


class VllmServer:
    """One vLLM process group; `check` is to be called about twice a second."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        name: str,
        api_key: str,
        host: str = "127.0.0.1",
        log_folder: str | Path,
        slot_folder: Path | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            slot_folder: where a server with `keep_s` is found again; None ends it with this
                process, as `keep_s` 0 does.
        """
        self._config = config
        self._name = name
        self._api_key = api_key
        self._host = host
        self._log_folder = Path(log_folder)
        self._port = 0
        self._probe = Probe("", model=name, api_key=api_key)
        self._digest = ""
        self._slot = (
            Slot(slot_folder, keep_s=config.keep_s, where=f"rewards.servers.{name}")
            if slot_folder is not None and config.keep_s
            else None
        )
        self._process: ServerProcess | None = None
        self._is_reattached = False
        self._log_start = 0
        self._state: Literal["starting", "ready", "restarting", "failed", "stopped"] = "stopped"
        self._was_ready = False
        self._num_restarts = 0
        self._num_failed_checks = 0
        self._started = 0.0
        self._start_s = 0.0
        self._detail = ""

    def start(self) -> None:
        """Start the process, or attach to one that was kept, and return at once.

        Raises:
            ValueError: a bad model folder, interpreter or state folder.
            RewardError: another supervisor holds the kept server.
        """
        check_launch(self._config, where=f"rewards.servers.{self._name}")
        self._digest = model_digest(server_folder(self._config))
        self._state = "starting"
        self._started = time.monotonic()
        if self._slot is not None:
            self._slot.open()  # before the log folder, which lies in it and would make it too open
        self._log_folder.mkdir(parents=True, exist_ok=True)
        if self._slot is not None:
            kept = self._slot.find()
            if kept is not None and self._attach(self._slot, kept):
                return
        self._set_address(free_port(self._host), self._api_key)
        self._spawn()

    @property
    def status(self) -> ServerStatus:
        return ServerStatus(
            state=self._state,
            url=f"http://{self._host}:{self._port}",
            model_digest=self._digest,
            was_ready=self._was_ready,
            num_restarts=self._num_restarts,
            start_s=self._start_s,
            group=self._group(),
            is_reattached=self._is_reattached,
            api_key=self._api_key,
            detail=self._detail,
        )

    def _group(self) -> int:
        return 0 if self._process is None else self._process.group

    @property
    def process_group(self) -> int:
        """Id of the group that holds every process of the server."""
        assert self._process is not None, "start() first"
        return self._process.group

    @property
    def log_path(self) -> Path:
        return self._log_folder / f"{self._name}-{self._port}.log"

    def check(self) -> None:
        """Look after the server once: notice its end, its health, its deadline; restart it."""
        if self._state in ("failed", "stopped"):
            return
        assert self._process is not None, "start() first"
        if self._process.has_ended():
            self._restart(f"the server process ended{self._log_tail()}")
        elif self._state == "ready":
            self._check_ready()
        elif self._probe.is_healthy() and self._warm_up():
            self._start_s = time.monotonic() - self._started
            self._state, self._was_ready, self._detail = "ready", True, ""
            self._num_failed_checks = 0
            if self._slot is not None:
                self._slot.set_ready()
        elif time.monotonic() - self._started > self._config.start_deadline_s:
            self._restart(
                f"/health did not answer within start_deadline_s of "
                f"{self._config.start_deadline_s:g} s{self._log_tail()}"
            )

    def _check_ready(self) -> None:
        healthy = self._probe.is_healthy()
        self._num_failed_checks = 0 if healthy else self._num_failed_checks + 1
        limit_s = self._config.answer_deadline_s
        if self._num_failed_checks >= MAX_FAILED_CHECKS:
            self._restart(f"/health failed {MAX_FAILED_CHECKS} times in a row")
        elif limit_s and self._probe.is_hung(limit_s):
            self._restart(f"a request for one token got no answer in {limit_s:g} s")

    def stop(self) -> None:
        """End the process group: SIGTERM, after a while SIGKILL."""
        self._end_group(GRACE_S)
        if self._slot is not None:
            self._slot.close()
        if self._state != "failed":
            self._state = "stopped"

    def let_go(self) -> None:
        """Leave a kept server to its lease, for the next supervisor; end any other."""
        if self._process is not None:
            self._process.let_go()
            self._process = None
        if self._state != "failed":
            self._state = "stopped"

    def _attach(self, slot: Slot, kept: KeptServer) -> bool:
        """Take over a kept server if it is what would be started and answers; else end it."""
        key = self._api_key
        self._set_address(kept.port, slot.key())
        self._log_start = Path(kept.log).stat().st_size if Path(kept.log).exists() else 0
        is_ready = slot.is_ready(kept)
        if kept.digest != self._launch_digest():
            reason = "it was started with other settings, model files or devices"
        elif kept.host != self._host:
            reason = f"it listens on {kept.host}, not {self._host}"
        elif is_ready and not (self._probe.is_healthy() and self._probe.knows_key()):
            reason = "it does not answer as it should"
        else:
            slot.start_renewing(kept.nonce)
            self._process, self._is_reattached = KeptProcess(slot, kept), True
            self._was_ready = is_ready
            self._state = "ready" if is_ready else "starting"
            self._start_s = time.monotonic() - self._started
            self._detail = "" if is_ready else f"starting, log in {kept.log}"
            logger.info("server reattached server=%s port=%d", self._name, kept.port)
            return True
        logger.warning("kept server ended server=%s reason=%r", self._name, reason)
        slot.end(kept, GRACE_S)
        self._api_key = key  # the port and the probe follow with the new start
        return False

    def _launch_digest(self) -> str:
        """Return what identifies a server: command, variables and model files, but no port."""
        command = server_command(self._config, name=self._name, host=self._host, port=0)
        environment = server_environment(self._config, "", os.environ)
        content = json.dumps([command, sorted(environment.items()), self._digest])
        return hashlib.sha256(content.encode()).hexdigest()

    def _spawn(self) -> None:
        """Start guard and server in a group of their own, logging to `log_path`."""
        self._is_reattached = False
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        launch = Launch(
            command=server_command(self._config, name=self._name, host=self._host, port=self._port),
            environment=server_environment(self._config, self._api_key, os.environ),
            log=self.log_path,
            folder=self._log_folder,
        )
        if self._slot is None:
            self._process = OwnProcess(launch)
        else:
            self._process = start_kept(
                self._slot,
                launch,
                key=self._api_key,
                host=self._host,
                port=self._port,
                digest=self._launch_digest(),
            )
        self._started = time.monotonic()
        if not self._detail:
            self._detail = f"starting, log in {self.log_path}"

    def _restart(self, reason: str) -> None:
        """Start the server again, unless it never came up or too often; then it has failed."""
        self._end_group(2.0)
        port_was_taken = not self._was_ready and "address already in use" in reason.lower()
        if self._num_restarts >= self._config.max_restarts or not (
            self._was_ready or port_was_taken
        ):
            self._state = "failed"
            self._detail = (
                f"{reason}\nThe server could not be kept up: {self._num_restarts} of max_restarts "
                f"{self._config.max_restarts} restarts were tried. Its log: {self.log_path}"
            )
            return
        if port_was_taken:
            self._set_address(free_port(self._host), self._api_key)
        self._num_restarts += 1
        self._num_failed_checks = 0
        self._set_address(self._port, self._api_key)
        self._state = "restarting" if self._was_ready else "starting"
        self._detail = reason
        self._spawn()

    def _warm_up(self) -> bool:
        """Send one request: the first one after a start takes seconds, and proves the key too."""
        try:
            wrong = self._probe.ask()
        except httpx.TimeoutException:
            wrong = "the request for one token got no answer in time"
        self._detail = wrong
        return not wrong

    def _set_address(self, port: int, key: str) -> None:
        self._port, self._api_key = port, key
        self._probe = Probe(self.status.url, model=self._name, api_key=key)

    def _end_group(self, grace_s: float) -> None:
        if self._process is not None:
            self._process.end(grace_s)
            self._process = None

    def _log_tail(self) -> str:
        """Return the last lines that this start wrote."""
        with self.log_path.open("rb") as stream:
            stream.seek(self._log_start)
            lines = stream.read().decode(errors="replace").strip().splitlines()
        if not lines:
            return "; its log is empty"
        return f"; the last lines of {self.log_path}:\n" + "\n".join(lines[-LOG_LINES:])


def free_port(host: str) -> int:
    """Return a port nobody listens on now; taken once, so that restarts keep the URL."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
