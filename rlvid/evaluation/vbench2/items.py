"""The benchmark's prompt file: a prompt, its dimension, and what its judges are told beside it.

The file is VBench2_full_info.json of the benchmark's repository and does not ship with rlvid. The
form of `auxiliary_info` differs by dimension; it is checked here, so that a wrong file is an error
before the first video is made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlvid.evaluation.vbench2.dimensions import DIMENSIONS

QUESTIONS = (
    "Motion_Rationality",
    "Dynamic_Spatial_Relationship",
    "Dynamic_Attribute",
    "Mechanics",
    "Thermotics",
    "Material",
)
"""Dimensions whose items bring a list of yes/no questions."""
PARTS = ("Motion_Order_Understanding", "Complex_Landscape", "Complex_Plot")
"""Dimensions whose items bring what must happen, in order."""
NUM_PARTS: Mapping[str, tuple[int, int]] = {
    "Motion_Order_Understanding": (2, 2),
    "Dynamic_Spatial_Relationship": (2, 2),
}
"""Least and most entries, where the rule depends on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One prompt of one dimension."""

    text: str
    dimension: str
    parts: tuple[str, ...] = ()
    """Questions, or what must happen in order, or the items of a composition."""
    label: str = ""
    """Wanted motion of the camera."""
    has_gate: bool = False
    """Composition: ask first whether only one creature is there."""
    needs_all: bool = False
    """Composition: every item must be there."""


def load_items(path: Path) -> tuple[Item, ...]:
    """Read the prompt file.

    Raises:
        ValueError: it is not there, no JSON, or an entry is not of its dimension's form.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"vbench2: no prompt file {str(path)!r}. It is VBench2_full_info.json in the folder "
            "VBench-2.0/vbench2 of the benchmark's repository."
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"vbench2: {path}: not JSON: {error}.") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"vbench2: {path}: expected a list of prompts.")
    return tuple(
        item for number, entry in enumerate(entries) for item in _items(entry, f"{path}: {number}")
    )


def _items(entry: Any, where: str) -> list[Item]:
    """Return an item for every dimension of the entry."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected an object, got {type(entry).__name__}.")
    text, names = entry.get("prompt_en"), entry.get("dimension")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: prompt_en: expected a sentence, got {text!r}.")
    if not isinstance(names, list) or not names:
        raise ValueError(f"{where}: dimension: expected a list of names, got {names!r}.")
    return [_item(text, name, entry.get("auxiliary_info"), where) for name in names]


def _item(text: str, name: Any, told: Any, where: str) -> Item:
    if name not in DIMENSIONS:
        raise ValueError(f"{where}: dimension: unknown {name!r}.")
    where = f"{where}: {name}: auxiliary_info"
    if name == "Composition":
        return _composition(text, told, where)
    if name == "Camera_Motion":
        if not isinstance(told, str) or not told:
            raise ValueError(f"{where}: expected the motion's label, got {told!r}.")
        return Item(text=text, dimension=name, label=told)
    if name not in QUESTIONS and name not in PARTS:
        return Item(text=text, dimension=name)
    parts = _texts(told, where)
    low, high = NUM_PARTS.get(name, (1, len(parts)))
    if not low <= len(parts) <= high:
        raise ValueError(f"{where}: expected {low} to {high} entries, got {len(parts)}.")
    return Item(text=text, dimension=name, parts=parts)


def _composition(text: str, told: Any, where: str) -> Item:
    if not isinstance(told, dict) or not isinstance(told.get("judge"), list):
        raise ValueError(
            f"{where}: expected {{question: [...], judge: [gate, all]}}, got {told!r}."
        )
    flags = told["judge"]
    if len(flags) != 2 or not all(flag in (0, 1, True, False) for flag in flags):
        raise ValueError(f"{where}: judge: expected two of 0 and 1, got {flags!r}.")
    return Item(
        text=text,
        dimension="Composition",
        parts=_texts(told.get("question"), where),
        has_gate=bool(flags[0]),
        needs_all=bool(flags[1]),
    )


def _texts(told: Any, where: str) -> tuple[str, ...]:
    is_list = isinstance(told, list) and bool(told)
    if not is_list or not all(isinstance(text, str) and text.strip() for text in told):
        raise ValueError(f"{where}: expected a list of sentences, got {told!r}.")
    return tuple(text.strip() for text in told)
