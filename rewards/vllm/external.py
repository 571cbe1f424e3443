"""A model server somebody else runs: its health is watched, it is never started or stopped."""

from __future__ import annotations

import os
import threading

import httpx

from rlvid.config.rewards import ServerConfig
from rlvid.rewards.base import Endpoint, RewardError

CHECK_EVERY_S = 5.0


class ExternalServer:
    """One URL of `rewards.servers.NAME.urls`; a thread asks it what it serves."""

    def __init__(self, url: str, config: ServerConfig, *, where: str) -> None:
        """ValueError when `api_key_env` names a variable that is not set."""
        self._url = base_url(url)
        self._wanted = "" if config.model == "tiny_judge" else config.model
        self._where = where
        self._key = api_key(config.api_key_env, where=where)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="external-server")
        self._refusal = ""
        self.endpoint: Endpoint | None = None
        """None until it first answered."""
        self.is_up = False
        self.detail = f"{self._url} was not asked yet"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def raise_refusal(self) -> None:
        """Raise what no waiting will mend: a wrong key, or a model that it does not serve."""
        if self._refusal:
            raise RewardError(self._refusal)

    def check(self) -> None:
        """Ask once which models are there."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            with httpx.Client(trust_env=False, timeout=10.0, headers=headers) as client:
                answer = client.get(f"{self._url}/v1/models")
            if answer.status_code in (401, 403):
                self._refusal = (
                    f"{self._where}.api_key_env: {self._url} refuses the key "
                    f"({answer.status_code}). Set the variable that it names to a valid key."
                )
                return
            answer.raise_for_status()
            served = {str(m["id"]): str(m.get("root") or "") for m in answer.json()["data"]}
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.is_up = False
            self.detail = f"{self._url} does not answer: {type(error).__name__}: {error}"
            return
        name = self._wanted or next(iter(served), "")
        if name not in served:
            self._refusal = (
                f"{self._where}.model: {self._url} does not serve {name!r}; it serves "
                f"{', '.join(sorted(served)) or 'nothing'}. Give one of these."
            )
            return
        # "created" is the time of its start and says nothing of the weights.
        word = f"{name}@{served[name]}"
        self.endpoint = Endpoint(url=self._url, model=name, model_digest=word, api_key=self._key)
        self.is_up = True
        self.detail = ""

    def _watch(self) -> None:
        self.check()
        while not self._stopping.wait(CHECK_EVERY_S if self.is_up else 1.0):
            self.check()


def base_url(url: str) -> str:
    """Return the URL without a slash or /v1 at its end; most servers are told of with it."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def api_key(variable: str, *, where: str) -> str:
    """Return the key that an environment variable holds; "" when none is named.

    Raises:
        ValueError: the variable is not set.
    """
    if not variable:
        return ""
    key = os.environ.get(variable, "")
    if not key:
        raise ValueError(
            f"{where}.api_key_env: the variable {variable!r} is not set. Set it to the key of the "
            "server, or leave api_key_env out when it asks for none."
        )
    return key
