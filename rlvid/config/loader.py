"""From a YAML file and overrides to a checked `Recipe`, and back to text; imports no torch.

A recipe sets only what differs from the defaults: a section is laid over the default *of its
place*, so `sft.learner.num_ranks: 2` keeps the other settings that `sft.learner` has by default.
A list replaces the default list.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rlvid.config.errors import ConfigError, describe, suggestion
from rlvid.config.recipe import Recipe

RECIPE_FOLDER = Path(__file__).resolve().parents[1] / "configs"
"""The recipes that ship with rlvid."""


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the checked recipe.

    Args:
        path_or_name: a YAML file, or the bare name of a recipe that ships with rlvid.
        overrides: "rollout.group_size=4"; values are YAML, list items go by index
            ("rewards.scorers.0.weight=2").

    Raises:
        ConfigError: no such file, not YAML, or not a valid recipe.
    """
    path = find_recipe(path_or_name)
    data = lay_over(default_values(Recipe), read_yaml(path), Recipe)
    for override in overrides:
        apply_override(data, override)
    return check(data)


def check(data: Mapping[str, Any]) -> Recipe:
    """Return the recipe that `data` spells out.

    Validation goes through JSON because pydantic's strict mode is then the one that is wanted: a
    list is a tuple and 1 is a float, but "1" is no number and 1.0 is no int.
    """
    try:
        text = json.dumps(data)
    except TypeError as error:
        raise ConfigError(
            f"recipe: {error}; values are numbers, text, true/false, lists and mappings "
            "(YAML reads a bare 2026-01-31 as a date; put it in quotes)"
        ) from error
    try:
        return Recipe.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join(describe(error, Recipe))) from error


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML; loading it again gives an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=100)


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with rlvid."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))


def find_recipe(path_or_name: str | Path) -> Path:
    """Return the file of a path or bare name."""
    path = Path(path_or_name)
    if path.is_file():
        return path
    shipped = RECIPE_FOLDER / f"{path_or_name}.yaml"
    if len(path.parts) == 1 and shipped.is_file():
        return shipped
    known = recipe_names()
    hint = suggestion(path.stem, known).replace("known keys", "recipes that ship with rlvid")
    raise ConfigError(f"recipe {str(path_or_name)!r}: no such file or recipe name; {hint}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping a YAML file holds; a key given twice is an error."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(data).__name__}")
    return data


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, except that a second value for a key is an error, not a silent winner."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} appears twice, the second time on line {line}"
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def default_values(section: type[BaseModel]) -> dict[str, Any]:
    """Return the section's defaults as plain values; required fields are absent."""
    values: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        if field.is_required():
            continue
        default = field.get_default(call_default_factory=True)
        values[name] = plain(default)
    return values


def plain(value: object) -> Any:
    """Return a default as YAML would give it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def lay_over(
    base: Mapping[str, Any], data: Mapping[str, Any], section: type[BaseModel]
) -> dict[str, Any]:
    """Return `base` with what `data` sets; sections are laid over field by field.

    A section with nothing in it (`rollout:`) is the default section.
    """
    merged = dict(base)
    for key, value in data.items():
        field = section.model_fields.get(key)
        inner = None if field is None else field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            if value is None:
                continue
            if isinstance(value, Mapping):
                merged[key] = lay_over(base.get(key, {}), value, inner)
                continue
        merged[key] = value
    return merged


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set what "a.b.0.c=value" says in `data`; whether the key exists is checked later."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override {override!r}: expected path=value, as in rollout.group_size=4")
    try:
        value = yaml.load(text, Loader=UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {text!r} is not valid YAML; put it in quotes") from error
    place: Any = data
    for depth, key in enumerate(keys):
        here = ".".join(keys[:depth])
        last = depth == len(keys) - 1
        if isinstance(place, list):
            index = list_index(place, key, where=here)
            if last:
                place[index] = value
            place = place[index]
        elif isinstance(place, dict):
            if last:
                place[key] = lay_value(place.get(key), value)
            elif place.get(key) is None:
                place[key] = {}
            place = place[key]
        else:
            raise ConfigError(f"{path}: {here} is {place!r} and has no keys to set")


def lay_value(current: object, value: object) -> object:
    """Return the value to set; a mapping given for a section changes only the keys it names."""
    if isinstance(current, dict) and isinstance(value, dict):
        return {**current, **value}
    return value


def list_index(items: Sequence[object], key: str, *, where: str) -> int:
    """Return the index a path names."""
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(
            f"{where}.{key}: expected an index from 0 to {len(items) - 1} "
            f"(the list has {len(items)} items), got {key!r}"
        )
    return int(key)
