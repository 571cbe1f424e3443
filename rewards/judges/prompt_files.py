"""Prompts and rubrics as files: YAML with Jinja templates, read from here or from a path.

A template sees `prompt` (the text), `facts` (its known facts, a mapping), `num_frames`, `fps` and,
where a description was made first, `description`. A name that is not there is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field

from rlvid.config.base import Section
from rlvid.config.shipped_file import ShippedFile, read_shipped
from rlvid.records import Prompt

FOLDER = Path(__file__).parent / "prompts"


class Question(Section):
    """A yes/no question."""

    name: str
    ask: str
    """Template."""
    negated: str = ""
    """Template of the question with the opposite answer; "" when there is none."""
    gate: Literal["none", "zero", "exclude"] = "none"
    """What a "no" does: nothing more than count; score the clip 0; or leave the clip unjudged,
    which counts as a missing score. A gate decides and does not count itself."""
    weight: float = Field(default=1.0, gt=0.0)
    show: Literal["all", "first", "last"] = "all"
    """Which of the frames."""
    when: str = ""
    """Template; the question is left out where it renders to nothing."""


class Rubric(Section):
    """A graded question."""

    name: str
    ask: str
    levels: int = Field(default=5, ge=2, le=9)
    """Grades go from 1, worst, to this."""
    weight: float = Field(default=1.0, gt=0.0)


class Pair(Section):
    """Which of two clips is better."""

    ask: str
    first: str = "A"
    second: str = "B"
    """The two answers; each must be one token of the model."""
    label_first: str = ""
    label_second: str = ""
    """Texts in front of the clips."""


class Describe(Section):
    """A description by the model that sees, then yes/no questions to one that reads."""

    ask: str
    max_tokens: int = Field(default=256, ge=1)
    questions: tuple[Question, ...] = Field(min_length=1)
    """Their templates see `description`."""


class PromptFile(ShippedFile):
    """One file: whatever of the four kinds it has."""

    about: str = ""
    system: str = ""
    """Template of a system message; "" sends none."""
    yes: str = "Yes"
    no: str = "No"
    questions: tuple[Question, ...] = ()
    rubrics: tuple[Rubric, ...] = ()
    pair: Pair | None = None
    describe: Describe | None = None


def load_prompt_file(name: str, *, where: str) -> PromptFile:
    """Read a file by its path, or one of those that ship by its name.

    Raises:
        ValueError: no such file, a key or value that does not fit, or a template that does not
            parse.
    """
    found = read_shipped(name, PromptFile, folder=FOLDER, where=where, what="prompt file")
    for template in _templates(found.model_dump()):
        _compiled(template, f"{where}: {name}")
    return found


def render(template: str, prompt: Prompt, **more: Any) -> str:
    """Return the text of a template for a prompt; ValueError names what is not there."""
    facts: Mapping[str, str] = prompt.facts
    try:
        text = _compiled(template, "prompt").render(prompt=prompt.text, facts=facts, **more)
    except jinja2.UndefinedError as error:
        raise ValueError(
            f"prompt file: {error.message} in {template!r}; the prompt {prompt.text!r} has facts "
            f"{sorted(facts) or 'none'}. Give the prompt that fact, or use other questions."
        ) from error
    return str(text).strip()


def parse_facts(prompt: Prompt) -> Prompt:
    """Return the prompt with the facts of its caption, where it is one of the tiny world."""
    import dataclasses

    from rlvid.data.tiny_world.grammar import parse

    facts = prompt.facts or parse(prompt.text)
    return dataclasses.replace(prompt, facts=facts) if facts else prompt


@lru_cache(maxsize=512)
def _compiled(template: str, where: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=False
    )
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"{where}: {error.message} in the template {template!r}.") from error


def _templates(values: Any) -> list[str]:
    """Return every text of a tree; plain ones are templates without holes."""
    if isinstance(values, str):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list | tuple):
        return [text for value in values for text in _templates(value)]
    return []
