"""From pydantic's validation errors to lines a person can act on.

Each line reads `path: what is wrong; the way out`, where the path is the one an override on the
command line takes, e.g. `rewards.scorers.0.weight`.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


class ConfigError(ValueError):
    """A recipe that cannot be used; the message has one line for each thing wrong with it."""


EXPECTED = {
    "float_type": "float",
    "float_parsing": "float",
    "int_type": "int",
    "int_parsing": "int",
    "int_from_float": "int",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a section (a mapping)",
    "model_attributes_type": "a section (a mapping)",
    "finite_number": "a finite number",
}
"""pydantic's error type to the word for what belongs there."""

BOUNDS = {
    "greater_than": ("a number above", "gt"),
    "greater_than_equal": ("a number of at least", "ge"),
    "less_than": ("a number below", "lt"),
    "less_than_equal": ("a number of at most", "le"),
}

EXPONENT_WITHOUT_POINT = re.compile(r"[-+]?\d+[eE][-+]?\d+$")


def describe(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """Return one line for each error of `error`, in the order of the recipe's fields."""
    return [describe_one(details, root) for details in error.errors(include_url=False)]


def describe_one(details: ErrorDetails, root: type[BaseModel]) -> str:
    """Return the line for one error."""
    kind, loc, value = details["type"], details["loc"], details["input"]
    context: Mapping[str, Any] = details.get("ctx", {})
    path = ".".join(str(part) for part in loc) or "recipe"
    if kind == "extra_forbidden":
        return f"{path}: unknown key; {suggestion(str(loc[-1]), field_names(root, loc[:-1]))}"
    if kind == "missing":
        return f"{path}: missing; every recipe must set it"
    if kind == "literal_error":
        choices = str(context["expected"]).replace(" or ", ", ")
        return f"{path}: expected one of {choices}, got {shown(value)}{yaml_hint(kind, value)}"
    if kind in EXPECTED:
        return f"{path}: expected {EXPECTED[kind]}, got {shown(value)}{yaml_hint(kind, value)}"
    if kind in BOUNDS:
        words, key = BOUNDS[kind]
        return f"{path}: expected {words} {context[key]}, got {shown(value)}"
    if kind == "value_error":
        return f"{path}: {context['error']}"
    return f"{path}: {details['msg']}, got {shown(value)}"


def shown(value: object) -> str:
    """Return the value as the message quotes it, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def yaml_hint(kind: str, value: object) -> str:
    """Return what YAML did to the value when that explains the error, else nothing."""
    if kind.startswith(("float", "int")) and isinstance(value, str):
        if EXPONENT_WITHOUT_POINT.match(value):
            mantissa, exponent = re.split("[eE]", value)
            if not exponent.startswith(("+", "-")):
                exponent = f"+{exponent}"
            return f" (YAML reads {value} as text; write {mantissa}.0e{exponent})"
        return " (remove the quotes)" if is_number(value) else ""
    if kind in ("string_type", "literal_error") and isinstance(value, bool):
        return " (YAML reads yes, no, on and off as true and false; put it in quotes)"
    return ""


def is_number(text: str) -> bool:
    """Return whether the text reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return "did you mean ..." when a known name is near, else the list of known names."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"


def field_names(root: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """Return the keys of the section at `loc`."""
    section = root
    for part in loc:
        if isinstance(part, str):
            section = next(iter(sections_in(section.model_fields[part].annotation)))
    return list(section.model_fields)


def sections_in(annotation: object) -> list[type[BaseModel]]:
    """Return the sections an annotation mentions: itself, inside an Optional or inside a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        return [s for argument in typing.get_args(annotation) for s in sections_in(argument)]
    return []
