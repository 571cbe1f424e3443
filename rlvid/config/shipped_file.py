"""YAML files that ship with rlvid or are the user's own, and the templates in them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, ValidationError

from rlvid.config.base import Section
from rlvid.config.errors import describe_one

_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True
)


class ShippedFile(Section):
    """What every such file says of itself."""

    name: str
    version: int = Field(ge=1)
    """Raise it with every change of meaning; the digest tells changes of text by itself."""

    @property
    def digest(self) -> str:
        """12 hex digits over the whole file, templates included."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


F = TypeVar("F", bound=ShippedFile)


def read_shipped(name: str, form: type[F], *, folder: Path, where: str, what: str) -> F:
    """Read a file by its path, or one of those in `folder` by its name.

    Args:
        where: path of the setting that names it, for errors.
        what: the kind of file, for errors.

    Raises:
        ValueError: no such file, no YAML, or a key or value that does not fit.
    """
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise ValueError(
            f"{where}: no {what} {name!r}: expected a path that ends in .yaml, or one of {shipped}."
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: {path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{where}: {path}: expected a mapping, got {type(values).__name__}.")
    try:
        return form.model_validate(values)
    except ValidationError as error:
        line = describe_one(error.errors(include_url=False)[0], form)
        raise ValueError(f"{where}: {path}: {line}") from error


def check_templates(*templates: str, where: str) -> None:
    """Raise ValueError where a template does not parse."""
    for template in templates:
        try:
            _ENVIRONMENT.from_string(template)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"{where}: {error.message} in the template {template!r}.") from error


def render_template(template: str, values: dict[str, Any], *, where: str) -> str:
    """Return the text of a template; ValueError names what it asks for and is not given."""
    try:
        return _ENVIRONMENT.from_string(template).render(**values).strip()
    except jinja2.UndefinedError as error:
        raise ValueError(
            f"{where}: {error.message}; a template may use {', '.join(sorted(values))}."
        ) from error
