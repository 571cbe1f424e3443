"""What a supervisor asks its server: is it healthy, is it ours, does it still answer."""

from __future__ import annotations

import threading
import time

import httpx

HEALTH_TIMEOUT_S = 5.0
WARM_UP_TIMEOUT_S = 60.0
ASK_EVERY_S = 30.0
"""Between two requests that find out whether the engine behind a healthy front still works."""


class Probe:
    """Asks one server; made anew whenever its URL or key changes."""

    def __init__(self, url: str, *, model: str, api_key: str) -> None:
        self._url = url
        self._model = model
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._asked = time.monotonic()
        self._asking: threading.Thread | None = None
        self._is_hung = False

    def is_healthy(self) -> bool:
        return self._get("/health")

    def knows_key(self) -> bool:
        """Whether what answers is a model server with this key; /health asks for none."""
        return self._get("/v1/models")

    def ask(self, timeout_s: float = WARM_UP_TIMEOUT_S) -> str:
        """Ask for one token; return what went wrong, "" if it answered.

        Raises:
            httpx.TimeoutException: it did not answer in time.
        """
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": "Yes or No?"}],
            "max_tokens": 1,
        }
        try:
            with httpx.Client(trust_env=False, timeout=timeout_s, headers=self._headers) as client:
                response = client.post(f"{self._url}/v1/chat/completions", json=body)
        except httpx.TimeoutException:
            raise
        except httpx.HTTPError as error:
            return f"the request for one token failed: {type(error).__name__}"
        if response.status_code != 200:
            return f"the request for one token got {response.status_code}: {response.text[:300]}"
        return ""

    def is_hung(self, deadline_s: float) -> bool:
        """Return whether a request has been without an answer for `deadline_s`.

        It never waits: now and then it sends one from a thread, and says what became of it. /health
        is answered by the front even while the engine behind it is stopped.
        """
        now = time.monotonic()
        if self._asking is not None and self._asking.is_alive():
            return self._is_hung
        if not self._is_hung and now - self._asked >= ASK_EVERY_S:
            self._asked = now
            self._asking = threading.Thread(
                target=self._note_answer, args=(deadline_s,), name="probe", daemon=True
            )
            self._asking.start()
        return self._is_hung

    def _note_answer(self, deadline_s: float) -> None:
        try:
            self.ask(deadline_s)
        except httpx.TimeoutException:
            self._is_hung = True

    def _get(self, path: str) -> bool:
        try:
            with httpx.Client(
                trust_env=False, timeout=HEALTH_TIMEOUT_S, headers=self._headers
            ) as client:
                return client.get(f"{self._url}{path}").status_code == 200
        except httpx.HTTPError:
            return False
