"""The client of the HTTP reward service (`app.py`); `remote.py` makes scorers of it.

It sends clips as bytes, tries again on another answer than a whole and matching one, and trusts
only scores that carry the id and the digest of the clip they are given to.
"""

from __future__ import annotations

import logging
import math
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import tenacity
from pydantic import ValidationError

from rlvid.rewards import wire
from rlvid.rewards.base import RewardError, RewardTimeoutError
from rlvid.rewards.service.protocol import (
    MEDIA_TYPE,
    ClipGroup,
    ClipScore,
    ScoreAnswer,
    ServiceInfo,
)

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 64 * 2**20
MAX_ANSWER_ITEMS = 1_000_000
"""7 a score: 140000 of them."""
LONGEST_WAIT_S = 5.0
"""Between two attempts."""
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""


class _AttemptError(Exception):
    """One attempt that gave no answer to trust; another one may."""

    def __init__(self, reason: str, *, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteConfig:
    """Where the service is and what of it is wanted."""

    url: str
    """Base, e.g. "http://127.0.0.1:8400"."""
    fps: int
    """Of the clips; the pool checks that the model makes them so."""
    token_file: str = ""
    """File with the bearer token, as `rlvid serve-rewards` writes it."""
    token_env: str = ""
    """Environment variable with the token, where there is no file."""
    scorers: dict[str, float] = field(default_factory=dict)
    """Weight of each scorer of the service in this reward; {} takes the weights of its recipe."""
    timeout_s: float = 60.0
    """Of one attempt."""
    max_attempts: int = 4
    deadline_s: float = 110.0
    """Of all attempts and the waits between them."""


class ServiceClient:
    """Asks one service; any thread may."""

    def __init__(self, config: RemoteConfig, *, is_group_wise: bool) -> None:
        """Ask the service what it has.

        Raises:
            ValueError: no token, or the service lacks a scorer.
            RewardError: it cannot be reached.
        """
        self._config = config
        # The environment's proxies are for the internet; clips stay in the cluster.
        self._http = httpx.Client(
            base_url=config.url,
            headers={"Authorization": f"Bearer {_token(config)}"},
            timeout=config.timeout_s,
            trust_env=False,
        )
        info = self._describe()
        by_name = {scorer.name: scorer for scorer in info.scorers}
        for name in config.scorers:
            if name not in by_name:
                raise ValueError(
                    f"remote {config.url}: no scorer {name!r}; there: {', '.join(by_name)}"
                )
        self.weights: Mapping[str, float] = config.scorers or {
            scorer.name: scorer.weight for scorer in info.scorers if scorer.weight
        }
        for name in self.weights:
            if by_name[name].is_group_wise and not is_group_wise:
                raise ValueError(
                    f"remote {config.url}: {name!r} scores whole groups; "
                    "use `remote_group`, or leave it out of `scorers`"
                )
        self.version = " ".join(f"{n}={by_name[n].version}*{w}" for n, w in self.weights.items())

    def score(self, groups: Sequence[ClipGroup]) -> list[float]:
        """Return the weighted sum for each clip, in order; NaN where a scorer gave none.

        Raises:
            RewardTimeoutError: no whole answer before the deadline.
            RewardError: no whole answer in `max_attempts`, or the service refuses the request.
        """
        request_id = uuid.uuid4().hex
        message = {
            "request_id": request_id,
            # Without what is left out, so that an older service reads all that it knows.
            "groups": [group.model_dump(exclude_defaults=True) for group in groups],
            "scorers": list(self.weights),
        }
        body = wire.pack(message)
        give_up = time.monotonic() + self._config.deadline_s
        scores = self._retried(lambda: self._ask(body, request_id, groups, give_up), give_up)
        return [self._sum(one) for one in scores]

    def close(self) -> None:
        self._http.close()

    def _retried(self, attempt: Any, give_up: float) -> Any:
        retrying = tenacity.Retrying(
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(self._config.max_attempts),
                tenacity.stop_after_delay(self._config.deadline_s),
            ),
            wait=self._wait,
            retry=tenacity.retry_if_exception_type(_AttemptError),
            before_sleep=lambda state: logger.info(
                "remote %s: attempt %d failed: %s",
                self._config.url,
                state.attempt_number,
                state.outcome.exception() if state.outcome else "",
            ),
            reraise=True,
        )
        try:
            return retrying(attempt)
        except _AttemptError as error:
            kind = RewardTimeoutError if time.monotonic() >= give_up else RewardError
            tries = retrying.statistics.get("attempt_number", 1)
            raise kind(
                f"remote {self._config.url}: no usable answer in {tries} attempts; "
                f"the last one: {error}"
            ) from error

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait_s if isinstance(error, _AttemptError) else 0.0
        backed_off = tenacity.wait_random_exponential(multiplier=0.1, max=LONGEST_WAIT_S)(state)
        return min(LONGEST_WAIT_S, max(asked, backed_off))

    def _describe(self) -> ServiceInfo:
        give_up = time.monotonic() + self._config.deadline_s
        body = self._retried(lambda: self._exchange("GET", "/v1/scorers", None, give_up), give_up)
        try:
            return ServiceInfo.model_validate_json(body)
        except ValidationError as error:
            raise RewardError(
                f"remote {self._config.url}: /v1/scorers is not that of a reward service: "
                f"{error.errors()[0]['msg']}"
            ) from error

    def _ask(
        self, body: bytes, request_id: str, groups: Sequence[ClipGroup], give_up: float
    ) -> list[dict[str, ClipScore]]:
        """Make one attempt; returns the scores of each clip by scorer."""
        raw = self._exchange("POST", "/v1/score", body, give_up)
        try:
            answer: ScoreAnswer = wire.unpack(
                raw,
                ScoreAnswer,
                where="answer",
                max_bytes=MAX_ANSWER_BYTES,
                max_items=MAX_ANSWER_ITEMS,
            )
        except wire.WireError as error:
            raise _AttemptError(str(error)) from error
        if answer.request_id != request_id:
            raise _AttemptError(f"answer to {answer.request_id!r}, asked {request_id!r}")
        return self._matched(answer, groups)

    def _matched(
        self, answer: ScoreAnswer, groups: Sequence[ClipGroup]
    ) -> list[dict[str, ClipScore]]:
        """Return the scores clip by clip; _AttemptError unless each is there once, for its clip."""
        found: dict[tuple[str, str], dict[str, ClipScore]] = {}
        digests: dict[tuple[str, str], str] = {}
        for group in groups:
            for clip_id, digest in zip(group.clip_ids, group.digests(), strict=True):
                found[group.group_id, clip_id] = {}
                digests[group.group_id, clip_id] = digest
        for scored in answer.groups:
            for score in scored.scores:
                key = (scored.group_id, score.clip_id)
                if key not in found or score.scorer not in self.weights:
                    raise _AttemptError(f"a score that was not asked for: {key} {score.scorer!r}")
                if score.digest != digests[key]:
                    raise _AttemptError(f"the score of {key} belongs to another clip")
                if score.scorer in found[key]:
                    raise _AttemptError(f"two scores of {score.scorer!r} for {key}")
                found[key][score.scorer] = score
        for key, scores in found.items():
            lacking = sorted(set(self.weights) - set(scores))
            if lacking:
                raise _AttemptError(f"no score of {lacking[0]!r} for {key}")
        return list(found.values())

    def _sum(self, scores: Mapping[str, ClipScore]) -> float:
        total = 0.0
        for name, weight in self.weights.items():
            score = scores[name]
            if score.value is None or not math.isfinite(score.value):
                reason = score.error or f"the service said {score.value}"
                logger.warning("remote %s: no score of %s: %s", self._config.url, name, reason)
                return math.nan
            total += weight * score.value
        return total

    def _exchange(self, method: str, path: str, body: bytes | None, give_up: float) -> bytes:
        """Make one HTTP request and return its body, read within limits of size and time."""
        began = time.monotonic()
        until = min(give_up, began + self._config.timeout_s)
        left = max(0.01, until - began)
        headers = {"Content-Type": MEDIA_TYPE} if body is not None else {}
        try:
            with self._http.stream(
                method, path, content=body, headers=headers, timeout=left
            ) as response:
                raw = bytearray()
                for chunk in response.iter_raw():
                    raw += chunk
                    if len(raw) > MAX_ANSWER_BYTES:
                        raise _AttemptError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
                    if time.monotonic() > until:  # httpx limits the wait for each piece only
                        raise _AttemptError(f"no whole answer in {left:.1f} s")
        except httpx.HTTPError as error:
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            raise _AttemptError(reason) from error
        if response.status_code == 200:
            return bytes(raw)
        reason = f"status {response.status_code}: {bytes(raw[:500]).decode('utf-8', 'replace')}"
        if response.status_code in RETRIED:
            raise _AttemptError(reason, wait_s=_retry_after(response))
        raise RewardError(f"remote {self._config.url}: {reason}")


def _token(config: RemoteConfig) -> str:
    """Return the bearer token; ValueError when the recipe names none or it is not there."""
    if config.token_file:
        try:
            return Path(config.token_file).expanduser().read_text().strip()
        except OSError as error:
            raise ValueError(f"remote: token_file: cannot read it: {error}") from error
    if config.token_env:
        token = os.environ.get(config.token_env, "").strip()
        if not token:
            raise ValueError(f"remote: token_env: {config.token_env} is not set")
        return token
    raise ValueError("remote: set token_file or token_env; the service asks for its token")


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "0")
    return float(text) if text.isdecimal() else 0.0
