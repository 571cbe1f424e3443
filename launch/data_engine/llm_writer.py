"""A language model behind an OpenAI-compatible endpoint as the writer of prompts.

Answers are asked for by a JSON schema, which a vLLM server enforces. What comes back all the same
broken is asked for again and then counted: one bad answer costs its own prompts and no others.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlvid.config.data_engine import LlmConfig
from rlvid.data.engine.records import Weakness
from rlvid.launch.data_engine.templates_file import load_templates, render
from rlvid.rewards.base import Endpoint
from rlvid.rewards.judges.client import JudgeAnswerError, JudgeClient, json_form
from rlvid.rewards.judges.loop_thread import LoopThread
from rlvid.rewards.judges.router import Router, RouterSettings
from rlvid.seeds import derive_seed

logger = logging.getLogger(__name__)

CONCURRENCY = 16
"""Requests in flight; prompts are independent of one another."""
MAX_QUESTIONS = 4
MAX_CHARACTERS = 2000
"""Of one text of an answer; xgrammar needs a bound, or a small model never ends its string."""
EXAMPLES_PER_REQUEST = 6


class LlmWriter:
    """Analogy, augmentation and questions by a model."""

    def __init__(
        self, config: LlmConfig, endpoints: Callable[[], Sequence[Endpoint]], *, seed: int
    ) -> None:
        """`endpoints` is asked before each batch of requests: a server of ours may move."""
        self._config = config
        self._endpoints = endpoints
        self._seed = seed
        self._templates = load_templates(config.templates)
        self._router = Router(
            RouterSettings(
                timeout_s=config.deadline_s,
                deadline_s=config.deadline_s * config.max_attempts,
                max_attempts=config.max_attempts,
            )
        )
        self._client = JudgeClient(self._router)
        self._loop = LoopThread()
        self.failures: Counter[str] = Counter()
        """Answers that could not be used, by reason."""

    def analogies(self, weakness: Weakness, num: int, *, round_: int) -> Sequence[object]:
        """Ask once for each `EXAMPLES_PER_REQUEST` examples, so that the answers differ."""
        examples = list(weakness.seed_prompts)
        starts = range(0, max(len(examples), 1), EXAMPLES_PER_REQUEST)
        share = -(-num // len(starts))
        texts = [
            render(
                self._templates.analogy,
                dimension=weakness.dimension,
                description=weakness.description,
                examples=examples[start : start + EXAMPLES_PER_REQUEST],
                num=share,
                round=round_,
            )
            for start in starts
        ]
        answers = self._ask(texts, "prompts", max_items=share, salt=f"analogy {round_}")
        return [item for answer in answers for item in answer]

    def augment(self, weakness: Weakness, prompts: Sequence[str]) -> Sequence[object]:
        texts = [
            render(
                self._templates.augment,
                dimension=weakness.dimension,
                description=weakness.description,
                prompt=prompt,
            )
            for prompt in prompts
        ]
        answers = self._ask(texts, "prompts", max_items=1, salt="augment")
        return [answer[0] if answer else None for answer in answers]

    def questions(self, weakness: Weakness, prompts: Sequence[str]) -> Sequence[Sequence[object]]:
        texts = [
            render(
                self._templates.questions,
                dimension=weakness.dimension,
                description=weakness.description,
                prompt=prompt,
                num=MAX_QUESTIONS,
            )
            for prompt in prompts
        ]
        return self._ask(texts, "questions", max_items=MAX_QUESTIONS, salt="questions")

    def close(self) -> None:
        self._loop.close()

    def _ask(
        self, texts: Sequence[str], key: str, *, max_items: int, salt: str
    ) -> list[list[object]]:
        """Return the list of each answer; () for one that could not be used, with its reason
        counted."""
        self._router.replace(self._endpoints())
        schema = _schema(key, max_items)
        deadline = self._config.deadline_s * self._config.max_attempts * (len(texts) + 1)
        return self._loop.run(self._ask_all(texts, key, schema, salt), deadline)

    async def _ask_all(
        self, texts: Sequence[str], key: str, schema: Mapping[str, Any], salt: str
    ) -> list[list[object]]:
        room = asyncio.Semaphore(CONCURRENCY)

        async def one(number: int, text: str) -> list[object]:
            async with room:
                for attempt in range(self._config.max_attempts):
                    seed = request_seed(self._seed, salt, number, attempt)
                    try:
                        return await self._once(text, key, schema, seed)
                    except JudgeAnswerError as error:
                        logger.warning("writer: attempt=%d: %s", attempt, error)
                self.failures["broken_answer"] += 1
                return []

        return list(await asyncio.gather(*(one(n, text) for n, text in enumerate(texts))))

    async def _once(
        self, text: str, key: str, schema: Mapping[str, Any], seed: int
    ) -> list[object]:
        answer = await self._client.chat(
            text,
            system=self._templates.system,
            max_tokens=self._config.max_tokens,
            temperature=self._config.temperature,
            seed=seed,
            response_format=json_form(key, schema),
        )
        return read_answer(answer.text, key)


def read_answer(text: str, key: str) -> list[object]:
    """Return the list under `key` of a JSON answer, whatever its items are.

    Raises:
        JudgeAnswerError: cut off, no JSON, or no such list.
    """
    try:
        found = json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        raise JudgeAnswerError(f"writer: expected JSON, got {text[:120]!r}") from error
    items = found.get(key) if isinstance(found, dict) else None
    if not isinstance(items, list):
        raise JudgeAnswerError(f"writer: expected a list under {key!r}, got {text[:120]!r}")
    return items


def request_seed(*parts: str | int) -> int:
    """Return a seed below 2**31, which is what servers take."""
    first, *rest = parts
    return derive_seed(int(first), *rest) % 2**31


def _schema(key: str, max_items: int) -> dict[str, Any]:
    item = {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS}
    items = {"type": "array", "minItems": 1, "maxItems": max_items, "items": item}
    return {
        "type": "object",
        "properties": {key: items},
        "required": [key],
        "additionalProperties": False,
    }
