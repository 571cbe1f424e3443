"""From a name in a recipe to the object it names."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping


def resolve(name: str, table: Mapping[str, str], *, where: str) -> object:
    """Return what `name` names: a short name of `table`, or `package.module:Attribute`.

    Args:
        table: short name to "package.module:Attribute".
        where: the recipe path for the error, e.g. "rewards.scorers[0].use".

    Raises:
        ValueError: unknown short name, module that cannot be imported, or missing attribute.
    """
    target = name if ":" in name else table.get(name)
    if target is None:
        near = difflib.get_close_matches(name, list(table), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(table))}."
        raise ValueError(
            f"{where}: unknown name {name!r}; {hint} A name of your own is package.module:Class."
        )
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{where}: cannot import {module_name!r} ({error}); "
            "install the package or put its folder on PYTHONPATH"
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise ValueError(f"{where}: module {module_name!r} has no {attribute!r}") from error
