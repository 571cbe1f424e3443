"""A judge for a command or a benchmark, without a pool: one of its own, or one of a URL."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlvid.config.rewards import ServerConfig
from rlvid.rewards.base import Endpoint, RewardError
from rlvid.rewards.vllm.external import ExternalServer
from rlvid.rewards.vllm.server import VllmServer


@contextmanager
def own_server(
    config: ServerConfig | None = None, *, log_folder: str | Path = "", key: str = ""
) -> Iterator[Endpoint]:
    """Start a server, by default the embedded judge's, and end it on leaving.

    Nothing restarts it in between: what it fails then fails here.

    Args:
        log_folder: keeps its log; "" leaves none behind.

    Raises:
        ValueError: no vLLM in this interpreter, or no such model.
        RewardError: it did not come up; with the last lines of its log.
    """
    settings = config or ServerConfig()
    with tempfile.TemporaryDirectory(prefix="rlvid-judge-") as folder:
        token = key or secrets.token_urlsafe(24)
        server = VllmServer(settings, name="judge", api_key=token, log_folder=log_folder or folder)
        try:
            server.start()
            while server.status.state == "starting":
                time.sleep(0.25)
                server.check()
            status = server.status
            if status.state != "ready":
                raise RewardError(f"judge: the server did not come up: {status.detail}")
            yield Endpoint(
                url=status.url, model="judge", model_digest=status.model_digest, api_key=token
            )
        finally:
            server.stop()


def endpoint_of(url: str, *, model: str = "", api_key_env: str = "") -> Endpoint:
    """Return the endpoint of a server somebody else runs.

    Args:
        model: name that it serves; "" takes the first.

    Raises:
        ValueError: it does not answer, or the variable of the key is not set.
        RewardError: it refuses the key, or does not serve the model.
    """
    config = ServerConfig(model=model or "tiny_judge", urls=(url,), api_key_env=api_key_env)
    server = ExternalServer(url, config, where="server")
    server.check()
    server.raise_refusal()
    if server.endpoint is None:
        raise ValueError(
            f"server: {server.detail}. Give the base of a running server, without /v1, or none to "
            "start the embedded judge."
        )
    return server.endpoint
