"""Templates of requests to a language model: YAML with Jinja, shipped or the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlvid.config.shipped_file import ShippedFile, check_templates, read_shipped, render_template

FOLDER = Path(__file__).parent / "templates"
WHERE = "data_engine.prompts.llm.templates"


class WriterTemplates(ShippedFile):
    """The three requests of a writer, and the one of a judge."""

    system: str = ""
    analogy: str
    augment: str
    questions: str
    plausible: str
    """Whether `prompt` could be filmed, yes or no."""


def load_templates(name: str) -> WriterTemplates:
    """Read a file by its path, or one of those that ship by its name.

    Raises:
        ValueError: no such file, a key that does not fit, or a template that does not parse.
    """
    found = read_shipped(name, WriterTemplates, folder=FOLDER, where=WHERE, what="templates")
    requests = (found.system, found.analogy, found.augment, found.questions, found.plausible)
    check_templates(*requests, where=f"{WHERE}: {name}")
    return found


def render(template: str, **values: Any) -> str:
    """Return the text of a template; ValueError names what it asks for and is not given."""
    return render_template(template, values, where=WHERE)
