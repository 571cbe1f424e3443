"""From a scorer's entry in a recipe to the scorer itself."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from rlvid.config.errors import describe_one, suggestion
from rlvid.config.rewards import ScorerConfig
from rlvid.plugins import resolve
from rlvid.rewards.base import GroupReward, KeepsDeadline, Reward
from rlvid.rewards.critics import BUILTIN


def open_scorer(config: ScorerConfig, where: str) -> Reward | GroupReward:
    """Build the scorer that `config` names; with `python` set, in that interpreter.

    A scorer is a class with an optional nested `Config` (a dataclass or a pydantic model); it is
    called with that Config, or with nothing when it has none.

    Args:
        where: the recipe path for errors, e.g. "rewards.scorers.0".

    Raises:
        ValueError: unknown name, unknown or badly typed key, or not a scorer.
        RewardError: with `python` set, its process died or did not open in time.
    """
    if config.python:  # nothing of it may be imported here, where its packages are not
        from rlvid.rewards.isolation.scorer import open_isolated

        return open_isolated(config, where)
    factory = resolve(config.use, BUILTIN, where=f"{where}.use")
    if not callable(factory):
        raise ValueError(f"{where}.use: {config.use!r} is not a class, got {factory!r}")
    config_class = getattr(factory, "Config", None)
    if config_class is None:
        if config.config:
            raise ValueError(
                f"{where}.config: {config.use!r} takes no settings (it has no nested Config), "
                f"got {', '.join(sorted(config.config))}. Remove them."
            )
        scorer: Reward | GroupReward = factory()
    else:
        scorer = factory(build_config(config_class, config.config, where=f"{where}.config"))
    if isinstance(scorer, Reward) == isinstance(scorer, GroupReward):
        raise ValueError(
            f"{where}.use: {config.use!r} is no scorer: expected a clip_spec and exactly one of "
            "score() and score_group(). See rlvid.rewards.base."
        )
    if config.deadline_s is not None and isinstance(scorer, KeepsDeadline):
        scorer.keep_deadline(config.deadline_s)
    return scorer


def build_config(config_class: type[Any], values: dict[str, Any], *, where: str) -> Any:
    """Return `config_class` made of `values`; ValueError names the key that does not fit."""
    known = _field_names(config_class, where)
    for key in values:
        if key not in known:
            hint = suggestion(key, known) if known else "this scorer has no settings"
            raise ValueError(f"{where}.{key}: unknown key; {hint}")
    try:
        return TypeAdapter(config_class).validate_python(values)
    except ValidationError as error:
        line = describe_one(error.errors(include_url=False)[0], config_class)
        raise ValueError(f"{where}.{line}") from error


def _field_names(config_class: type[Any], where: str) -> list[str]:
    if dataclasses.is_dataclass(config_class):
        return [field.name for field in dataclasses.fields(config_class)]
    if isinstance(config_class, type) and issubclass(config_class, BaseModel):
        return list(config_class.model_fields)
    raise ValueError(
        f"{where}: Config must be a dataclass or a pydantic model, got {config_class!r}"
    )
