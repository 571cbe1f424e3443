"""What every section of a recipe shares: frozen, strict, and no unknown keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of a recipe."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


def refuse_unread(section: Section, names: Iterable[str], why: str, *, where: str = "") -> None:
    """Raise ValueError for the first of `names` that is set, though nothing reads it.

    A resolved recipe names every key, so what is set is what differs from its default. Not for
    fields whose default is another one at some places, such as `lora` of a learner.

    Args:
        why: the rest of "<name> is not read ...", e.g. "by kind ode, but by kind random".
        where: path of the section for the message, ending in a dot; "" where pydantic gives it.
    """
    for name in names:
        value, default = getattr(section, name), type(section).model_fields[name].default
        if value != default:
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
