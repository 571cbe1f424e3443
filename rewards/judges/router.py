"""Sends requests to the replica with the fewest outstanding ones, and again when one fails.

Runs in the client, so it works the same with servers of ours and URLs of others. The replicas may
be exchanged while requests are in flight; those that fail then go to the new ones.

| what happens | then |
| --- | --- |
| refused or broken connection, time-out, 408, 429, 5xx, a body that is no JSON object or too long |
  again, on another replica where there is one, with exponential back-off and jitter |
| any other 4xx | JudgeRequestError with the server's own words: asking again would not help |
| no replica to be reached | waits, until `deadline_s`; a restart is not the request's fault |
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import tenacity

from rlvid.rewards.base import Endpoint, RewardError, RewardTimeoutError
from rlvid.rewards.breaker import BreakerSettings, CircuitBreaker

RETRIED_STATUS = frozenset({408, 425, 429})
"""Of the 4xx; every 5xx is retried as well."""
MAX_BODY_BYTES = 8 * 2**20
WAIT_FOR_REPLICA_S = 0.25


class JudgeRequestError(RewardError):
    """The server understood and refused; `status` says how."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _TryAgainError(Exception):
    """One attempt failed; `reached` says whether the server had the request in hand."""

    def __init__(self, reason: str, *, reached: bool) -> None:
        super().__init__(reason)
        self.reached = reached


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """Deadlines and retries of one request."""

    timeout_s: float = 60.0
    """One attempt."""
    deadline_s: float = 240.0
    """All attempts and waits; longer than a restart takes."""
    max_attempts: int = 5
    """Attempts that reached a server; a refused connection is not counted."""
    backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    max_connections: int = 128
    slow_s: float = 45.0
    """An answer that takes longer counts as a failure of its replica while others are well."""
    breaker: BreakerSettings = BreakerSettings(max_failures=3, open_s=1.0, max_open_s=15.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A JSON object and who gave it."""

    body: Mapping[str, Any]
    endpoint: Endpoint
    seconds: float
    num_attempts: int


@dataclass(slots=True, eq=False)
class _Replica:
    endpoint: Endpoint
    breaker: CircuitBreaker
    num_outstanding: int = 0
    num_requests: int = 0


class Router:
    """Owned by one event loop; every method but the constructor is called in it."""

    def __init__(self, settings: RouterSettings | None = None) -> None:
        self.settings = settings or RouterSettings()
        self._replicas: list[_Replica] = []
        self._turn = itertools.count()
        self._client: httpx.AsyncClient | None = None
        self.num_retries = 0
        self.num_failed = 0

    def replace(self, endpoints: Sequence[Endpoint]) -> None:
        """Take the replicas there are now; those that stay keep their counts and breakers."""
        known = {replica.endpoint: replica for replica in self._replicas}
        self._replicas = [
            known.get(endpoint) or _Replica(endpoint, CircuitBreaker(self.settings.breaker))
            for endpoint in endpoints
        ]

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return tuple(replica.endpoint for replica in self._replicas)

    def outstanding(self) -> dict[str, int]:
        """Return URL to requests in flight."""
        return {r.endpoint.url: r.num_outstanding for r in self._replicas}

    def counts(self) -> dict[str, int]:
        """Return URL to requests sent, failed attempts included."""
        return {r.endpoint.url: r.num_requests for r in self._replicas}

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def post(self, path: str, body: Mapping[str, Any]) -> Answer:
        """Send a request; `model` and the key are filled in for the replica that gets it.

        Raises:
            JudgeRequestError: the server refused the request itself.
            RewardTimeoutError: nobody answered within `deadline_s`.
            RewardError: `max_attempts` attempts failed.
        """
        started = time.monotonic()
        num_reached, tried = 0, set[str]()
        last: _TryAgainError | None = None
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_TryAgainError),
            wait=tenacity.wait_random_exponential(
                multiplier=self.settings.backoff_s, max=self.settings.max_backoff_s
            ),
            stop=lambda _: num_reached >= self.settings.max_attempts,
            reraise=True,
        )
        try:
            async with asyncio.timeout(self.settings.deadline_s):
                async for attempt in retrying:
                    with attempt:
                        replica = await self._pick(tried)
                        tried.add(replica.endpoint.url)
                        try:
                            found, seconds = await self._attempt(replica, path, body)
                        except _TryAgainError as error:
                            num_reached += error.reached
                            self.num_retries += 1
                            last = error
                            raise
                        return Answer(
                            body=found,
                            endpoint=replica.endpoint,
                            seconds=seconds,
                            num_attempts=attempt.retry_state.attempt_number,
                        )
        except _TryAgainError as error:
            self.num_failed += 1
            raise RewardError(
                f"judge: {num_reached} attempts at {path} failed, the last one: {error}. See the "
                "server's log; raise max_attempts if the failures are passing ones."
            ) from error
        except TimeoutError as error:
            self.num_failed += 1
            why = "there was no replica to ask" if last is None else str(last)
            raise RewardTimeoutError(
                f"judge: no answer to {path} within {time.monotonic() - started:.0f} s "
                f"(deadline_s {self.settings.deadline_s:g}); the last attempt: {why}."
            ) from error
        raise AssertionError("tenacity ends by returning or raising")

    async def _pick(self, tried: set[str]) -> _Replica:
        """Return the replica to ask: not tried yet if possible, then fewest outstanding."""
        while True:
            now = time.monotonic()
            free = [r for r in self._replicas if r.breaker.allows(now)]
            if free:
                turn = next(self._turn)
                return min(
                    (free[(n + turn) % len(free)] for n in range(len(free))),
                    key=lambda r: (r.endpoint.url in tried, r.num_outstanding),
                )
            waits = [r.breaker.wait_s(now) for r in self._replicas]
            # Replicas may be exchanged meanwhile, so never sleep for long.
            await asyncio.sleep(max(0.01, min([WAIT_FOR_REPLICA_S, *waits])))

    async def _attempt(
        self, replica: _Replica, path: str, body: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], float]:
        """Ask one replica once and tell its breaker."""
        started = time.monotonic()
        replica.num_outstanding += 1
        replica.num_requests += 1
        replica.breaker.call_started()
        try:
            found = await self._send(replica.endpoint, path, body)
        except _TryAgainError:
            replica.breaker.failed(time.monotonic())
            raise
        except JudgeRequestError:
            replica.breaker.succeeded()  # it is well: it read the request and said what is wrong
            raise
        except BaseException:  # cancelled: says nothing of the replica
            replica.breaker.call_withdrawn()
            raise
        finally:
            replica.num_outstanding -= 1
        seconds = time.monotonic() - started
        others = any(r.breaker.is_closed for r in self._replicas if r is not replica)
        # Where there is nobody quicker, a slow replica is better than none.
        if others and seconds > self.settings.slow_s:
            replica.breaker.failed(time.monotonic())
        else:
            replica.breaker.succeeded()
        return found, seconds

    async def _send(
        self, endpoint: Endpoint, path: str, body: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        url = f"{endpoint.url.rstrip('/')}{path}"
        headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
        content = json.dumps({**body, "model": endpoint.model}).encode()
        headers["Content-Type"] = "application/json"
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                async with self._http().stream(
                    "POST", url, content=content, headers=headers
                ) as response:
                    status, data = response.status_code, b""
                    async for piece in response.aiter_bytes():
                        data += piece
                        if len(data) > MAX_BODY_BYTES:
                            raise _TryAgainError(
                                f"{url} answered with more than {MAX_BODY_BYTES} bytes",
                                reached=True,
                            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _TryAgainError(
                f"{url}: no connection ({type(error).__name__})", reached=False
            ) from error
        except TimeoutError as error:
            raise _TryAgainError(
                f"{url}: no answer within timeout_s {self.settings.timeout_s:g}", reached=True
            ) from error
        except httpx.HTTPError as error:
            # A server that is killed breaks every request it holds; that is not the request's
            # fault, so it counts like a refused connection.
            broke = isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)
            raise _TryAgainError(
                f"{url}: {type(error).__name__} {error}", reached=not broke
            ) from error
        return _read(url, status, data)

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                trust_env=False,  # a proxy of the environment must not see keys and clips
                timeout=httpx.Timeout(self.settings.timeout_s, connect=10.0),
                limits=httpx.Limits(
                    max_connections=self.settings.max_connections,
                    max_keepalive_connections=32,
                    keepalive_expiry=4.0,  # uvicorn closes idle ones after 5 s
                ),
                follow_redirects=False,
            )
        return self._client


def _read(url: str, status: int, data: bytes) -> Mapping[str, Any]:
    """Return the JSON object of a 200; raise for everything else."""
    if status >= 500 or status in RETRIED_STATUS:
        raise _TryAgainError(f"{url}: {status}: {_message(data)}", reached=True)
    if status >= 300:
        raise JudgeRequestError(
            f"judge: {url} refused the request, {status}: {_message(data)}", status
        )
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _TryAgainError(f"{url}: not JSON: {data[:80]!r}", reached=True) from error
    if not isinstance(found, dict):
        raise _TryAgainError(f"{url}: no JSON object: {data[:80]!r}", reached=True)
    return found


def _message(data: bytes) -> str:
    """Return the server's own words from an OpenAI error, or the start of the body."""
    try:
        error = json.loads(data)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:500]
    except (ValueError, KeyError, TypeError):
        return data[:200].decode(errors="replace")
