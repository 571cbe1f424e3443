"""Lessons: rewrites given to the model, so that it knows the form before it is rewarded for it.

A small model rarely finds the form by itself, and a group in which every answer is malformed
teaches nothing. RePrompt (arXiv:2505.17540) therefore begins with supervised training, and does
best with both. No loss of its own is needed: an answer of advantage 1, with the policy itself for
the behaviour, has the gradient of cross-entropy in `token_grpo_loss`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlvid.algorithms.token_grpo import TokenBatch
from rlvid.config.enhancement import ColdStartConfig, LengthConfig, TokenGrpoConfig
from rlvid.data.prompts import seeded_order
from rlvid.data.tiny_world.grammar import all_facts, caption, split_of
from rlvid.data.tiny_world.vague import vague_text
from rlvid.enhancement.answer import Enhanced, Malformed, parse_answer
from rlvid.enhancement.language_model import LanguageModel
from rlvid.enhancement.sampling import SampledAnswer
from rlvid.enhancement.scoring import collate
from rlvid.enhancement.template import RewriterTemplate, request_tokens

_KEYS = {"text", "reason", "prompt"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A user's prompt and the answer that is wanted."""

    text: str
    answer: Enhanced


def load_lessons(path: Path) -> tuple[Lesson, ...]:
    """Read a .jsonl file, {"text": ..., "reason": ..., "prompt": ...} a line.

    Raises:
        ValueError: a line that is badly written, or whose answer would count as malformed; the
            message names it. What the rewarder refuses must not be taught.
    """
    lessons: list[Lesson] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            item = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON: {error}") from error
        if not isinstance(item, dict) or set(item) != _KEYS:
            raise ValueError(f"{where}: expected an object with {sorted(_KEYS)}, got {line[:80]!r}")
        if not all(isinstance(value, str) for value in item.values()):
            raise ValueError(f"{where}: expected text under every key, got {line[:80]!r}")
        answer = parse_answer(written(item["reason"], item["prompt"]), original=item["text"])
        if isinstance(answer, Malformed):
            raise ValueError(f"{where}: its answer is malformed: {answer.failure.value}")
        lessons.append(Lesson(text=item["text"], answer=answer))
    if not lessons:
        raise ValueError(f"{path}: no lessons: expected one a line, got an empty file.")
    return tuple(lessons)


def tiny_world_lessons(num_pairs: int, *, seed: int, allows_unchanged: bool) -> tuple[Lesson, ...]:
    """Return wishes of the tiny world in a user's words, each with its caption.

    Of training facts only, every fact in other words at every turn; never in those of the prompt
    set "tiny_world_vague", which are variant 0.

    Args:
        allows_unchanged: whether every fourth wish is a caption already, to be handed back.
    """
    facts = [facts for facts in all_facts() if split_of(facts) == "train"]
    lessons = []
    for number in range(num_pairs):
        turn, place = divmod(number, len(facts))
        wish = facts[seeded_order(seed, "lessons", turn, len(facts))[place]]
        prompt = caption(wish)
        is_caption = allows_unchanged and number % 4 == 3
        text = prompt if is_caption else vague_text(wish, variant=turn + 1)
        reason = f"{wish['colour']} {wish['object']} {wish['motion']} {wish['direction']}"
        answer = Enhanced(reason=f"{reason}, camera {wish['camera']}", prompt=prompt)
        lessons.append(Lesson(text=text, answer=answer))
    return tuple(lessons)


def open_lessons(
    config: ColdStartConfig, *, seed: int, allows_unchanged: bool
) -> tuple[Lesson, ...]:
    """Return the pairs of the section.

    Raises:
        ValueError: a file that is missing or badly written.
    """
    if config.pairs == "tiny_world":
        return tiny_world_lessons(config.num_pairs, seed=seed, allows_unchanged=allows_unchanged)
    path = Path(config.pairs).expanduser()
    if not path.is_file():
        raise ValueError(
            "prompt_enhancement.cold_start.pairs: no such file: expected 'tiny_world' or a .jsonl "
            f"file, got {config.pairs!r}"
        )
    return load_lessons(path)


def written(reason: str, prompt: str) -> str:
    """Return an answer as the model should write it."""
    return f"<reason>{reason}</reason><prompt>{prompt}</prompt>"


def lesson_batch(
    lessons: Sequence[Lesson],
    language: LanguageModel,
    template: RewriterTemplate,
    length: LengthConfig,
    config: TokenGrpoConfig,
) -> TokenBatch:
    """Return the lessons as answers of advantage 1; score it `with_behaviour` before the loss."""
    answers = [_as_answer(lesson, language, template, length) for lesson in lessons]
    return collate(
        answers,
        group_index=[0] * len(answers),
        advantage=torch.ones(len(answers)),
        trained=torch.ones(len(answers), dtype=torch.bool),
        config=config,
        max_new_tokens=max(len(answer.answer_ids) for answer in answers),
        pad_id=language.pad_id,
    )


def _as_answer(
    lesson: Lesson, language: LanguageModel, template: RewriterTemplate, length: LengthConfig
) -> SampledAnswer:
    text = written(lesson.answer.reason, lesson.answer.prompt)
    if not text.startswith(template.answer_start):
        raise ValueError(
            f"prompt_enhancement.rewriter.template: answer_start: expected the beginning of an "
            f"answer, {text[:20]!r}, got {template.answer_start!r}"
        )
    rest = text.removeprefix(template.answer_start)
    ids = language.tokenizer(rest, add_special_tokens=False)["input_ids"]
    answer_ids = (*(int(token) for token in ids), language.end_ids[0])
    return SampledAnswer(
        prompt_ids=request_tokens(language.tokenizer, template, lesson.text, length),
        answer_ids=answer_ids,
        log_prob=(0.0,) * len(answer_ids),
        is_finished=True,
    )
