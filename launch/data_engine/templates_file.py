"""Templates of requests to a language model: YAML with Jinja, shipped or the user's own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, ValidationError

from rlvid.config.base import Section
from rlvid.config.errors import describe_one

FOLDER = Path(__file__).parent / "templates"
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True
)


class WriterTemplates(Section):
    """The three requests of a writer, and the one of a judge."""

    name: str
    version: int = Field(ge=1)
    system: str = ""
    analogy: str
    augment: str
    questions: str
    plausible: str
    """Whether `prompt` could be filmed, yes or no."""

    @property
    def digest(self) -> str:
        """12 hex digits over the whole file."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def load_templates(name: str) -> WriterTemplates:
    """Read a file by its path, or one of those that ship by its name.

    Raises:
        ValueError: no such file, a key that does not fit, or a template that does not parse.
    """
    where = "data_engine.prompts.llm.templates"
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise ValueError(
            f"{where}: no templates {name!r}: expected a path that ends in .yaml, or one of "
            f"{shipped}."
        )
    try:
        found = WriterTemplates.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        for template in (
            found.system, found.analogy, found.augment, found.questions, found.plausible
        ):  # fmt: skip
            _ENVIRONMENT.from_string(template)
    except (yaml.YAMLError, jinja2.TemplateSyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: {path}: {error}") from error
    except ValidationError as error:
        line = describe_one(error.errors(include_url=False)[0], WriterTemplates)
        raise ValueError(f"{where}: {path}: {line}") from error
    return found


def render(template: str, **values: Any) -> str:
    """Return the text of a template; ValueError names what it asks for and is not given."""
    try:
        return _ENVIRONMENT.from_string(template).render(**values).strip()
    except jinja2.UndefinedError as error:
        raise ValueError(
            f"data_engine.prompts.llm.templates: {error.message}; a template may use "
            f"{', '.join(sorted(values))}."
        ) from error
