"""Supervises one vLLM server process: start, health, restart, stop. A plain class, no Ray.

start() -> starting --/health answers and one request went through--> ready
ready   --exit, or /health fails three times--> restarting --> ready, under the same URL
any     --more than max_restarts, or a first start that fails--> failed
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import httpx

from rlvid.config.rewards import ServerConfig
from rlvid.rewards.vllm.command import (
    check_launch,
    model_digest,
    server_command,
    server_environment,
    server_folder,
)

GRACE_S = 10.0
"""Between SIGTERM and SIGKILL; vLLM needs about 2.5 s to end its children."""
HEALTH_TIMEOUT_S = 5.0
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
    ) -> None:
        self._config = config
        self._name = name
        self._api_key = api_key
        self._host = host
        self._log_folder = Path(log_folder)
        self._port = 0
        self._digest = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._log_start = 0
        self._state: Literal["starting", "ready", "restarting", "failed", "stopped"] = "stopped"
        self._was_ready = False
        self._num_restarts = 0
        self._num_failed_checks = 0
        self._started = 0.0
        self._start_s = 0.0
        self._detail = ""

    def start(self) -> None:
        """Start the process and return at once; ValueError for a bad folder or interpreter."""
        check_launch(self._config, where=f"rewards.servers.{self._name}")
        self._digest = model_digest(server_folder(self._config))
        self._port = free_port(self._host)
        self._log_folder.mkdir(parents=True, exist_ok=True)
        self._state = "starting"
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
            detail=self._detail,
        )

    @property
    def process_group(self) -> int:
        """Id of the group that holds every process of the server."""
        assert self._process is not None, "start() first"
        return self._process.pid

    @property
    def log_path(self) -> Path:
        return self._log_folder / f"{self._name}-{self._port}.log"

    def check(self) -> None:
        """Look after the server once: notice its end, its health, its deadline; restart it."""
        if self._state in ("failed", "stopped"):
            return
        if self._has_ended():
            self._restart(f"the server process ended{self._log_tail()}")
        elif self._state == "ready":
            self._num_failed_checks = 0 if self._is_healthy() else self._num_failed_checks + 1
            if self._num_failed_checks >= MAX_FAILED_CHECKS:
                self._restart(f"/health failed {MAX_FAILED_CHECKS} times in a row")
        elif self._is_healthy() and self._warm_up():
            self._start_s = time.monotonic() - self._started
            self._state, self._was_ready, self._detail = "ready", True, ""
            self._num_failed_checks = 0
        elif time.monotonic() - self._started > self._config.start_deadline_s:
            self._restart(
                f"/health did not answer within start_deadline_s of "
                f"{self._config.start_deadline_s:g} s{self._log_tail()}"
            )

    def stop(self) -> None:
        """End the process group: SIGTERM, after a while SIGKILL."""
        self._end_group(GRACE_S)
        if self._state != "failed":
            self._state = "stopped"

    def _spawn(self) -> None:
        """Start guard and server in a group of their own, logging to `log_path`."""
        command = server_command(self._config, name=self._name, host=self._host, port=self._port)
        self._log = self.log_path.open("ab")
        os.chmod(self.log_path, 0o600)
        self._log_start = self._log.tell()
        guard = Path(__file__).with_name("guard.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(guard), str(GRACE_S), *command],
            stdin=subprocess.PIPE,  # closes when this process ends; see guard.py
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=server_environment(self._config, self._api_key, os.environ),
            cwd=self._log_folder,  # else whatever lies in the current folder could be imported
            start_new_session=True,
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
            self._port = free_port(self._host)
        self._num_restarts += 1
        self._num_failed_checks = 0
        self._state = "restarting" if self._was_ready else "starting"
        self._detail = reason
        self._spawn()

    def _has_ended(self) -> bool:
        """Whether the guard is gone; it is left unreaped, so that its group id stays ours."""
        assert self._process is not None, "start() first"
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self._process.pid, flags) is not None
        except ChildProcessError:
            return True

    def _is_healthy(self) -> bool:
        return self._get("/health") is not None

    def _get(self, path: str) -> httpx.Response | None:
        headers = {"Authorization": f"Bearer {self._api_key}"}
        try:
            with httpx.Client(trust_env=False, timeout=HEALTH_TIMEOUT_S, headers=headers) as client:
                response = client.get(f"{self.status.url}{path}")
        except httpx.HTTPError:
            return None
        return response if response.status_code == 200 else None

    def _warm_up(self) -> bool:
        """Send one request: the first one after a start takes seconds, and proves the key too."""
        body = {
            "model": self._name,
            "messages": [{"role": "user", "content": "Yes or No?"}],
            "max_tokens": 1,
        }
        headers = {"Authorization": f"Bearer {self._api_key}"}
        url = f"{self.status.url}/v1/chat/completions"
        try:
            with httpx.Client(trust_env=False, timeout=60.0, headers=headers) as client:
                response = client.post(url, json=body)
        except httpx.HTTPError as error:
            self._detail = f"the warm-up request failed: {type(error).__name__}"
            return False
        self._detail = f"the warm-up request got {response.status_code}: {response.text[:300]}"
        return response.status_code == 200

    def _end_group(self, grace_s: float) -> None:
        process = self._process
        if process is None:
            return
        if not self._has_ended():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)  # the guard passes it on
            give_up = time.monotonic() + grace_s
            while not self._has_ended() and time.monotonic() < give_up:
                time.sleep(0.05)
        # The guard is not reaped yet, so nobody else can have got this group id.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10.0)
        assert process.stdin is not None, "opened as a pipe"
        process.stdin.close()
        if self._log is not None:
            self._log.close()
        self._process, self._log = None, None

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
