"""Asks a model: one chat completion, the log-probability of its first token, or JSON by a schema.

Letters: K groups of words, e.g. the ways to write "Yes" and the ways to write "No".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlvid.rewards.base import Endpoint, RewardError
from rlvid.rewards.judges.frames import Shown
from rlvid.rewards.judges.once import Once
from rlvid.rewards.judges.router import Answer, JudgeRequestError, Router

TOP_LOGPROBS = 20
"""Most that vLLM and OpenAI return; a token outside them is found by `logprob_token_ids` only."""
EXTENSIONS = ("logprob_token_ids", "return_tokens_as_token_ids")
"""Fields of vLLM's; a server that refuses them is asked without."""


class JudgeAnswerError(RewardError):
    """The server answered, but not what can be read as a judgement; the score is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a model said."""

    text: str
    prompt_tokens: int
    endpoint: Endpoint
    first_token: Mapping[str, float]
    """Token, or "token_id:N", to log-probability in nats; empty when not asked for."""
    finish_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """Log of the probability that the answer begins with each group of words."""

    log_mass: tuple[float, ...]
    """[K] nats, summed over the variants of a group; -inf where the server named none of them."""
    completion: Completion

    def probabilities(self) -> tuple[float, ...] | None:
        """Return the K masses as shares of their sum; None when the server named none at all.

        P(yes) / (P(yes) + P(no)): what the model says besides is left out of it.
        """
        masses = np.array(self.log_mass)
        if not np.isfinite(masses).any():
            return None
        shares = np.exp(masses - masses[np.isfinite(masses)].max())
        return tuple(float(share) for share in shares / shares.sum())


class JudgeClient:
    """One model behind a router; lives in the router's event loop."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self._ids: Once[tuple[str, str], tuple[int, ...] | None] = Once()
        self._num_tokens: Once[tuple[str, ...], int] = Once()
        self._refused: set[str] = set()
        """Digests of models whose server refuses `EXTENSIONS`."""

    async def chat(self, content: Any, *, system: str = "", **options: Any) -> Completion:
        """Return the answer to one user message; `content` is a text or a list of parts."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": content})
        body = {"messages": messages, "temperature": 0.0, "seed": 0, **options}
        return _completion(await self.router.post("/v1/chat/completions", body))

    async def first_token(
        self, content: Any, groups: Sequence[str], *, system: str = ""
    ) -> FirstToken:
        """Return how likely the answer begins with each of the K words, in any spelling.

        Qwen's own spelling may be "Yes", " yes" or "YES": their probabilities add up. The ids are
        asked for one by one, since the top 20 need not hold them: with an untrained model both
        answers were outside.
        """
        ids = [await self._token_ids(word) for word in groups]
        wanted = sorted({token for group in ids for token in group})
        options: dict[str, Any] = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        digest = self._digest()
        extended = options | {"return_tokens_as_token_ids": True}
        extended |= {"logprob_token_ids": wanted} if wanted else {}
        use = options if digest in self._refused else extended
        try:
            answer = await self.chat(content, system=system, **use)
        except JudgeRequestError as error:
            if use is options or not any(name in str(error) for name in EXTENSIONS):
                raise
            self._refused.add(digest)
            answer = await self.chat(content, system=system, **options)
        masses = [
            _log_mass(answer.first_token, variants(word), group)
            for word, group in zip(groups, ids, strict=True)
        ]
        return FirstToken(log_mass=tuple(masses), completion=answer)

    async def json_object(
        self, content: Any, schema: Mapping[str, Any], *, max_tokens: int, system: str = ""
    ) -> tuple[Mapping[str, Any], Completion]:
        """Return an object of the schema, and the answer that held it.

        Raises:
            JudgeAnswerError: the answer was cut off or is not of the schema; servers that ignore
                the request for structured output exist.
        """
        answer = await self.chat(
            content,
            system=system,
            max_tokens=max_tokens,
            response_format=json_form("judgement", schema),
        )
        if answer.finish_reason == "length":
            raise JudgeAnswerError(
                f"judge: the JSON answer was cut off at max_tokens {max_tokens}: "
                f"{answer.text[:120]!r}. Raise max_tokens."
            )
        try:
            # Not strict: xgrammar lets raw control characters into strings of a bounded length.
            found = json.loads(answer.text, strict=False)
        except ValueError as error:
            raise JudgeAnswerError(
                f"judge: expected JSON of the schema, got {answer.text[:120]!r}. Use a server that "
                "has structured output, or the mode `grade`."
            ) from error
        return _checked(found, schema), answer

    async def num_text_tokens(self, texts: Sequence[str], *, system: str = "") -> int:
        """Return the tokens of a message that holds these texts and no picture."""

        async def ask() -> int:
            content: Any = texts[0] if len(texts) == 1 else [_text_part(text) for text in texts]
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": content})
            try:
                answer = await self.router.post("/tokenize", {"messages": messages})
                return int(answer.body["count"])
            except (JudgeRequestError, KeyError, TypeError, ValueError):
                # Not a vLLM: a text-only request says it as well.
                asked = await self.chat(content, system=system, max_tokens=1)
                return asked.prompt_tokens

        return await self._num_tokens.get((self._digest(), system, *texts), ask)

    async def _token_ids(self, word: str) -> tuple[int, ...]:
        """Return the ids of the word's spellings that are one token; empty where none can be had.

        Raises:
            JudgeAnswerError: every spelling is more than one token.
        """

        async def ask() -> tuple[int, ...] | None:
            found = []
            for text in variants(word):
                try:
                    answer = await self.router.post(
                        "/tokenize", {"prompt": text, "add_special_tokens": False}
                    )
                except JudgeRequestError as error:
                    if error.status not in (404, 405, 501):
                        raise
                    return None  # no vLLM: top_logprobs by their text must do
                tokens = answer.body.get("tokens")
                if isinstance(tokens, list) and len(tokens) == 1:
                    found.append(int(tokens[0]))
            return tuple(sorted(set(found)))

        ids = await self._ids.get((self._digest(), word), ask)
        if ids == ():
            raise JudgeAnswerError(
                f"judge: {word!r} is more than one token of the model in every spelling, so its "
                "probability cannot be read off the first. Choose another answer word in the "
                "prompt file."
            )
        return ids or ()

    def _digest(self) -> str:
        endpoints = self.router.endpoints
        return endpoints[0].model_digest if endpoints else ""


def json_form(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `response_format` that asks for an object of the schema."""
    return {
        "type": "json_schema",
        "json_schema": {"name": name, "schema": dict(schema), "strict": True},
    }


def variants(word: str) -> tuple[str, ...]:
    """Return the spellings that count as the word: case, and a space in front."""
    cases = dict.fromkeys((word, word.lower(), word.upper(), word.capitalize()))
    return tuple(space + case for case in cases for space in ("", " "))


def message(shown: Sequence[Shown], text: str, labels: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the parts of a user message: each clip after its label, then the text."""
    parts: list[dict[str, Any]] = []
    for position, clip in enumerate(shown):
        if position < len(labels) and labels[position]:
            parts.append(_text_part(labels[position]))
        parts += clip.parts
    return [*parts, _text_part(text)]


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _log_mass(found: Mapping[str, float], spellings: Sequence[str], ids: Sequence[int]) -> float:
    """Return log sum exp over the spellings that the server named, by id or by text."""
    names = [f"token_id:{number}" for number in ids] + list(spellings)
    values = [found[name] for name in names if name in found]
    return float(np.logaddexp.reduce(values)) if values else -math.inf


def _completion(answer: Answer) -> Completion:
    """Read an answer; JudgeAnswerError when it is not a chat completion."""
    try:
        choice = answer.body["choices"][0]
        text = choice["message"]["content"] or ""
        tokens = int(answer.body["usage"]["prompt_tokens"])
        content = (choice.get("logprobs") or {}).get("content") or []
        first: dict[str, float] = {}
        if content:
            for entry in [content[0], *(content[0].get("top_logprobs") or [])]:
                first[str(entry["token"])] = float(entry["logprob"])
        reason = str(choice.get("finish_reason"))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise JudgeAnswerError(
            f"judge: {answer.endpoint.url} answered with no chat completion "
            f"({type(error).__name__} {error}): {str(dict(answer.body))[:200]}"
        ) from error
    bad = [name for name, value in first.items() if math.isnan(value) or value > 1e-3]
    if bad:
        raise JudgeAnswerError(f"judge: log-probability of {bad[0]!r} is {first[bad[0]]}")
    return Completion(
        text=text,
        prompt_tokens=tokens,
        endpoint=answer.endpoint,
        first_token=first,
        finish_reason=reason,
    )


def _checked(found: Any, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check the few things our schemas say: keys, types, range of integers."""
    if not isinstance(found, dict):
        raise JudgeAnswerError(f"judge: expected a JSON object, got {str(found)[:120]!r}")
    for name, field in schema["properties"].items():
        value = found.get(name)
        if field["type"] == "integer":
            low, high = field["minimum"], field["maximum"]
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise JudgeAnswerError(
                    f"judge: {name}: expected an integer from {low} to {high}, got {value!r}"
                )
        elif not isinstance(value, str):
            raise JudgeAnswerError(f"judge: {name}: expected a text, got {value!r}")
    return found
