"""A language model behind an OpenAI-compatible endpoint, as the data engine asks it.

Answers are asked for by a JSON schema, which a vLLM server enforces. What comes back all the same
broken is counted and asked for again; when the attempts are used up it is None and counted again:
one bad answer costs its own prompts and no others, and nobody guesses what it may have meant.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rlvid.config.data_engine import LlmConfig
from rlvid.launch.data_engine.templates_file import load_templates
from rlvid.rewards.base import Endpoint
from rlvid.rewards.judges.client import JudgeAnswerError, JudgeClient, json_form
from rlvid.rewards.judges.loop_thread import LoopThread
from rlvid.rewards.judges.router import Router, RouterSettings
from rlvid.seeds import derive_seed

logger = logging.getLogger(__name__)

CONCURRENCY = 16
"""Requests in flight; prompts are independent of one another."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form(Generic[T]):
    """What an answer must look like."""

    kind: str
    """Name of what is asked for, in logs and counts: "analogy"."""
    key: str
    """The only key of the JSON object."""
    schema: Mapping[str, Any]
    """JSON schema of what lies under the key."""
    read: Callable[[Any], T]
    """Makes the answer of it; raises JudgeAnswerError for what does not fit."""
    temperature: float | None = None
    """Of the first attempt; None takes `LlmConfig.temperature`, as the attempts after it do."""


class LlmClient:
    """Asks many requests at once and waits for all of them."""

    def __init__(
        self, config: LlmConfig, endpoints: Callable[[], Sequence[Endpoint]], *, seed: int
    ) -> None:
        """`endpoints` is asked before each batch of requests: a server of ours may move."""
        self.templates = load_templates(config.templates)
        self.broken: Counter[str] = Counter()
        """Answers that could not be read, by kind; attempts, not requests."""
        self.given_up: Counter[str] = Counter()
        """Requests without any answer that could be read, by kind."""
        self._config = config
        self._endpoints = endpoints
        self._seed = seed
        self._router = Router(
            RouterSettings(
                timeout_s=config.deadline_s,
                deadline_s=config.deadline_s * config.max_attempts,
                max_attempts=config.max_attempts,
            )
        )
        self._client = JudgeClient(self._router)
        self._loop = LoopThread()

    def ask(self, texts: Sequence[str], form: Form[T], *, salt: str = "") -> list[T | None]:
        """Return what was read of each answer; None for one that could not be had.

        Args:
            salt: sets batches apart that ask the same, so that they are answered differently.
        """
        self._router.replace(self._endpoints())
        deadline = self._config.deadline_s * self._config.max_attempts * (len(texts) + 1)
        return self._loop.run(self._ask_all(texts, form, salt or form.kind), deadline)

    def counts(self) -> dict[str, int]:
        """Return both counts, by name."""
        named = (("broken", self.broken), ("given_up", self.given_up))
        return {f"{name}_{kind}": n for name, counter in named for kind, n in counter.items()}

    def close(self) -> None:
        self._loop.close()

    async def _ask_all(self, texts: Sequence[str], form: Form[T], salt: str) -> list[T | None]:
        room = asyncio.Semaphore(CONCURRENCY)

        async def one(number: int, text: str) -> T | None:
            async with room:
                for attempt in range(self._config.max_attempts):
                    seed = request_seed(self._seed, salt, number, attempt)
                    try:
                        return await self._once(text, form, seed, attempt)
                    except JudgeAnswerError as error:
                        self.broken[form.kind] += 1
                        logger.warning("%s: attempt=%d: %s", form.kind, attempt, error)
                self.given_up[form.kind] += 1
                return None

        return list(await asyncio.gather(*(one(n, text) for n, text in enumerate(texts))))

    async def _once(self, text: str, form: Form[T], seed: int, attempt: int) -> T:
        config = self._config
        first = form.temperature if attempt == 0 else None
        answer = await self._client.chat(
            text,
            system=self.templates.system,
            max_tokens=config.max_tokens,
            temperature=config.temperature if first is None else first,
            seed=seed,
            response_format=json_form(form.key, _object_of(form.key, form.schema)),
        )
        return form.read(read_answer(answer.text, form.key))


def read_answer(text: str, key: str) -> Any:
    """Return what lies under `key` of a JSON answer, whatever it is.

    Raises:
        JudgeAnswerError: cut off, no JSON, or no such key.
    """
    try:
        found = json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise JudgeAnswerError(f"expected JSON, got {text[:120]!r}") from error
    if not isinstance(found, dict) or key not in found:
        raise JudgeAnswerError(f"expected an object with {key!r}, got {text[:120]!r}")
    return found[key]


def request_seed(*parts: str | int) -> int:
    """Return a seed below 2**31, which is what servers take."""
    first, *rest = parts
    return derive_seed(int(first), *rest) % 2**31


def _object_of(key: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {key: schema},
        "required": [key],
        "additionalProperties": False,
    }
