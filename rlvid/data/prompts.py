"""Prompt sets and the order in which a run visits them.

The order has no state: which prompts a step takes follows from (recipe seed, step), so a resumed
run goes on exactly where it stopped and a checkpoint need not hold a data cursor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlvid.config.prompts import PromptsConfig
from rlvid.data.tiny_world.grammar import all_facts, caption, split_of
from rlvid.data.tiny_world.vague import vague_text
from rlvid.media import check_media, digest_media
from rlvid.records import Prompt
from rlvid.seeds import derive_seed, prompt_id

Facts = Mapping[str, str]
TINY_WORLDS: Mapping[str, Callable[[Facts], str]] = {
    "tiny_world": caption,
    "tiny_world_vague": vague_text,
}
"""Sources of the tiny world: what makes a text of facts."""
_JSONL_KEYS = frozenset({"text", "enhanced_text", "facts", "media"})


def load_prompts(config: PromptsConfig) -> tuple[Prompt, ...]:
    """Return the prompts of the section, in a fixed order.

    Raises:
        ValueError: unknown source, a file that is missing, empty or badly written (the message
            names the line), a text given twice, or a split of a file.
    """
    if config.limit is not None and config.limit < 1:
        raise ValueError(
            f"prompts.limit: must be at least 1 or null, got {config.limit}. Remove it for all."
        )
    if config.source in TINY_WORLDS:
        prompts = _tiny_world_prompts(config.split, TINY_WORLDS[config.source])
    else:
        prompts = _file_prompts(config)
    return prompts[: config.limit]


def load_text_prompts(config: PromptsConfig, *, who: str) -> tuple[Prompt, ...]:
    """Return the prompts of the section for a phase that knows texts alone.

    Args:
        who: names the phase in the message.

    Raises:
        ValueError: as `load_prompts`, or a prompt has media, which would be left out unseen.
    """
    prompts = load_prompts(config)
    for prompt in prompts:
        if prompt.media:
            raise ValueError(
                f"{who}: {config.source}: prompt {prompt.text!r} has media "
                f"{sorted(prompt.media)}: expected texts alone, which is all that this phase "
                "trains on. Give it a prompt set without media."
            )
    return prompts


def _tiny_world_prompts(split: str, words: Callable[[Facts], str]) -> tuple[Prompt, ...]:
    """Return a split sorted by prompt id, so that the first few already show every attribute.

    Args:
        words: makes the text of the facts.
    """
    chosen = [facts for facts in all_facts() if split in ("all", split_of(facts))]
    prompts = (
        Prompt(prompt_id=prompt_id(text), text=text, facts=facts)
        for facts, text in ((facts, words(facts)) for facts in chosen)
    )
    return tuple(sorted(prompts, key=lambda prompt: prompt.prompt_id))


def _file_prompts(config: PromptsConfig) -> tuple[Prompt, ...]:
    path = Path(config.source).expanduser()
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(
            f"prompts.source: unknown source: expected {' or '.join(map(repr, TINY_WORLDS))}, a "
            f".txt or a .jsonl file, got {config.source!r}."
        )
    if not path.is_file():
        raise ValueError(
            f"prompts.source: no such file: {config.source!r}. Give a path that exists; relative "
            "ones start at the working folder."
        )
    if config.split != "all":
        raise ValueError(
            f"prompts.split: a file is one split: expected 'all', got {config.split!r}. "
            "Set prompts.split to all; keep held-out prompts in a file of their own."
        )
    prompts: list[Prompt] = []
    first_line: dict[str, int] = {}
    for number, line in _lines(path):
        where = f"{path}:{number}"
        prompt = (
            _text_prompt(line) if path.suffix == ".txt" else _json_prompt(line, where, path.parent)
        )
        if prompt.prompt_id in first_line:
            raise ValueError(
                f"{where}: text given twice: already on line {first_line[prompt.prompt_id]}. "
                "Remove one; prompts are told apart by their text and what their media hold."
            )
        first_line[prompt.prompt_id] = number
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path}: no prompts: expected one a line, got an empty file.")
    return tuple(prompts)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, stripped line) of the lines that are not blank."""
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text: {error}. Save it as UTF-8.") from error


def _text_prompt(line: str) -> Prompt:
    return Prompt(prompt_id=prompt_id(line), text=line)


def _json_prompt(line: str, where: str, folder: Path) -> Prompt:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f'{where}: not JSON: {error}. Expected a line like {{"text": "a red ball"}}.'
        ) from error
    if not isinstance(item, dict) or not set(item) <= _JSONL_KEYS:
        got = sorted(item) if isinstance(item, dict) else type(item).__name__
        raise ValueError(
            f"{where}: wrong keys: expected an object with text and at most enhanced_text, facts "
            f"and media, got {got}."
        )
    text, enhanced, facts = item.get("text"), item.get("enhanced_text"), item.get("facts", {})
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: text: expected a sentence, got {text!r}.")
    if enhanced is not None and not isinstance(enhanced, str):
        raise ValueError(f"{where}: enhanced_text: expected a string or null, got {enhanced!r}.")
    if not isinstance(facts, dict) or not all(isinstance(value, str) for value in facts.values()):
        raise ValueError(f"{where}: facts: expected an object of strings, got {facts!r}.")
    return with_media(
        Prompt(prompt_id=prompt_id(text), text=text, enhanced_text=enhanced, facts=facts),
        item.get("media", {}),
        where=where,
        folder=folder,
    )


def with_media(prompt: Prompt, media: Any, *, where: str, folder: Path) -> Prompt:
    """Return the prompt with files beside its text, which are part of its id.

    Args:
        media: what the user wrote: name of `rlvid.media.SUFFIXES` to a path.
        where: begins the messages.
        folder: where relative paths start.

    Raises:
        ValueError: no mapping of that kind, or a file that is missing or does not decode.
    """
    if not isinstance(media, dict) or not all(isinstance(path, str) for path in media.values()):
        raise ValueError(
            f"{where}: media: expected an object of paths like "
            f'{{"first_frame": "beach.png"}}, got {media!r}.'
        )
    paths = {name: (folder / Path(path).expanduser()).resolve() for name, path in media.items()}
    try:
        for name, path in paths.items():
            check_media(name, path)
        digests = {name: digest_media(name, path) for name, path in paths.items()}
    except ValueError as error:
        raise ValueError(f"{where}: media.{error}") from error
    return replace(
        prompt,
        prompt_id=prompt_id(prompt.text, digests),
        media={name: str(path) for name, path in paths.items()},
    )


@lru_cache(maxsize=64)
def seeded_order(seed: int, purpose: str, epoch: int, count: int) -> tuple[int, ...]:
    """Return a permutation of range(count), the same on every machine and library version."""
    return tuple(sorted(range(count), key=lambda n: derive_seed(seed, purpose, epoch, n)))


def prompts_for_step(
    prompts: Sequence[Prompt], recipe_seed: int, step: int, num: int
) -> tuple[tuple[Prompt, int], ...]:
    """Return the `num` prompts of an optimiser step (from 0), each with its visit (from 0).

    Every epoch goes through all prompts once in an order of its own; steps run on over the end
    of an epoch, so no prompt is dropped. The visit is the epoch: (prompt, visit) never repeats
    in a run and seeds the noise of the group.
    """
    if not prompts or step < 0 or num < 1:
        raise ValueError(
            "prompts_for_step: expected prompts, step >= 0 and num >= 1, "
            f"got {len(prompts)} prompts, step {step}, num {num}."
        )
    chosen = []
    for position in range(step * num, (step + 1) * num):
        epoch, place = divmod(position, len(prompts))
        order = seeded_order(recipe_seed, "prompts", epoch, len(prompts))
        chosen.append((prompts[order[place]], epoch))
    return tuple(chosen)
