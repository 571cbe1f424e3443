"""A language model as the writer of prompts: the three steps of GigaVideo-1 (arXiv:2506.10639)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlvid.data.engine.records import Weakness
from rlvid.launch.data_engine.llm_client import Form, LlmClient
from rlvid.launch.data_engine.templates_file import render
from rlvid.rewards.judges.client import JudgeAnswerError

MAX_QUESTIONS = 4
MAX_CHARACTERS = 2000
"""Of one text of an answer; xgrammar needs a bound, or a small model never ends its string."""
EXAMPLES_PER_REQUEST = 6


class LlmWriter:
    """Analogy, augmentation and questions by a model."""

    def __init__(self, client: LlmClient) -> None:
        self._client = client
        self._templates = client.templates

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
        form = _list_form("analogy", "prompts", max_items=share)
        answers = self._client.ask(texts, form, salt=f"analogy {round_}")
        return [item for answer in answers for item in answer or ()]

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
        answers = self._client.ask(texts, _list_form("augment", "prompts", max_items=1))
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
        form = _list_form("questions", "questions", max_items=MAX_QUESTIONS)
        return [answer or [] for answer in self._client.ask(texts, form)]


def read_list(found: Any) -> list[object]:
    """Return a list, whatever its items are: the filter counts what is no text.

    Raises:
        JudgeAnswerError: something else.
    """
    if not isinstance(found, list):
        raise JudgeAnswerError(f"expected a list, got {str(found)[:120]!r}")
    return found


def _list_form(kind: str, key: str, *, max_items: int) -> Form[list[object]]:
    item = {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS}
    schema = {"type": "array", "minItems": 1, "maxItems": max_items, "items": item}
    return Form(kind=kind, key=key, schema=schema, read=read_list)
