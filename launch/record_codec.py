"""Frozen records to plain trees and back, with the tensors beside them; nothing is unpickled.

A tree holds what msgpack knows: a record becomes a map of its fields, a tuple a list, a tensor the
name under which it lies among the tensors. Types are those that the record declares, so a field
that a record gains is kept without a word here; one that it lost is an error.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from typing import Any, TypeVar

from torch import Tensor

Record = TypeVar("Record")


class CodecError(ValueError):
    """A tree is not of the record it is read as; the message names the field."""


def encode(record: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return the tree of a record and its tensors by their place, e.g. "rollouts.3.latents"."""
    tensors: dict[str, Tensor] = {}
    return _encode(record, "", tensors), tensors


def decode(kind: type[Record], tree: Any, tensors: Mapping[str, Tensor]) -> Record:
    """Return the record that `encode` took apart.

    Raises:
        CodecError: the tree is of another record, or of another version of it.
    """
    record: Record = _decode(kind, tree, tensors, kind.__name__)
    return record


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[place] = value
        return place
    if is_dataclass(value):
        return {
            field.name: _encode(
                getattr(value, field.name), f"{place}.{field.name}".strip("."), tensors
            )
            for field in fields(value)
        }
    if isinstance(value, Mapping):
        return {key: _encode(item, f"{place}.{key}", tensors) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_encode(item, f"{place}.{number}", tensors) for number, item in enumerate(value)]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise CodecError(f"{place}: expected a record's field, got {type(value).__name__}")


def _decode(kind: Any, tree: Any, tensors: Mapping[str, Tensor], place: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if tree is None and type(None) in arguments:
            return None
        [kind] = [option for option in arguments if option is not type(None)]
        return _decode(kind, tree, tensors, place)
    if kind is Tensor and isinstance(tree, str) and tree in tensors:
        return tensors[tree]
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(tree, dict):
        return _decode_record(kind, tree, tensors, place)
    if origin is not None and issubclass(origin, Mapping) and isinstance(tree, dict):
        return {k: _decode(arguments[1], v, tensors, f"{place}.{k}") for k, v in tree.items()}
    if origin is not None and issubclass(origin, Sequence) and isinstance(tree, list):
        return tuple(
            _decode(arguments[0], item, tensors, f"{place}.{number}")
            for number, item in enumerate(tree)
        )
    # A float field may hold a whole number, which stays one.
    if isinstance(kind, type) and isinstance(tree, (int, float) if kind is float else kind):
        return tree
    raise CodecError(f"{place}: expected {kind}, got {type(tree).__name__}")


def _decode_record(
    kind: type, tree: dict[str, Any], tensors: Mapping[str, Tensor], place: str
) -> Any:
    known = {field.name: field for field in fields(kind)}
    odd = sorted(set(tree) - set(known))
    lacking = sorted(
        name
        for name, field in known.items()
        if name not in tree and field.default is MISSING and field.default_factory is MISSING
    )
    if odd or lacking:
        raise CodecError(
            f"{place}: expected the fields of {kind.__name__}, unknown {odd}, missing {lacking}; "
            "it was written by another version of rlvid"
        )
    hints = _hints(kind)
    return kind(
        **{
            name: _decode(hints[name], value, tensors, f"{place}.{name}")
            for name, value in tree.items()
        }
    )


@lru_cache(maxsize=64)
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
