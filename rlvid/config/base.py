"""What every section of a recipe shares: frozen, strict, and no unknown keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of a recipe."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


def is_set(section: Section, name: str) -> bool:
    """Return whether a setting differs from its default.

    A resolved recipe names every key, so what was set by hand cannot be told otherwise. Not for
    fields whose default is another one at some places, such as `lora` of a learner.
    """
    return bool(getattr(section, name) != default_of(section, name))


def default_of(section: Section, name: str) -> Any:
    """Return the default of a setting."""
    return type(section).model_fields[name].get_default(call_default_factory=True)


def refuse_unread(section: Section, names: Iterable[str], why: str, *, where: str = "") -> None:
    """Raise ValueError for the first of `names` that `is_set`, though nothing reads it.

    Args:
        why: the rest of "<name> is not read ...", e.g. "by kind ode, but by kind random".
        where: path of the section for the message, ending in a dot; "" where pydantic gives it.
    """
    for name in names:
        if is_set(section, name):
            value, default = getattr(section, name), default_of(section, name)
            usual = "" if isinstance(default, Section) else f", {default!r}"
            got = "" if isinstance(value, Section) else f"; got {value!r}"
            raise ValueError(
                f"{where}{name} is not read {why}: expected its default{usual}{got}. "
                "Leave it out, or set what reads it"
            )


def refuse_of_other_kinds(
    section: Section, kind: str, readers: Mapping[str, Iterable[str]]
) -> None:
    """Raise ValueError where a setting is set that a section of this kind does not read.

    Args:
        readers: setting to the kinds that read it.
    """
    for name, kinds in readers.items():
        if kind not in kinds:
            refuse_unread(section, (name,), f"by kind {kind}, but by {', '.join(kinds)}")
