"""Inference settings as files: what `rlvid optimise` wrote, and the space it is to search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from rlvid.config.base import Section
from rlvid.config.errors import ConfigError, describe
from rlvid.config.inference import InferenceConfig, SearchSpace
from rlvid.config.loader import read_yaml

S = TypeVar("S", bound=Section)


def load_inference(path: Path) -> InferenceConfig:
    """Return the setting in an `optimised.json`, or in a YAML file of an `inference` section.

    Raises:
        ConfigError: the file cannot be read, or holds no such setting.
    """
    tree = read_yaml(path)
    if "inference" not in tree:
        raise ConfigError(
            f"{path}: no key 'inference': expected what rlvid optimise writes (optimised.json), "
            f"got the keys {sorted(map(str, tree))}"
        )
    return _checked(InferenceConfig, tree["inference"], f"{path}: inference")


def load_search_space(path: Path) -> SearchSpace:
    """Return the space that a YAML file spells out; an axis it leaves out keeps its default.

    Raises:
        ConfigError: the file cannot be read, or is no such space.
    """
    return _checked(SearchSpace, read_yaml(path), str(path))


def _checked(section: type[S], tree: Mapping[str, Any], where: str) -> S:
    try:
        return section.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        lines = (f"{where}: {line}" for line in describe(error, section))
        raise ConfigError("\n".join(lines)) from error
