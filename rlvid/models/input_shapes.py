"""What a family's transformer is told and its text encoders read, as shapes: for counting FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class InputShapes:
    """Of one clip and one prompt of full length, from the configuration of the folder alone."""

    condition: Mapping[str, tuple[int, ...]]
    """Shape of each tensor of the condition that `velocity` needs, rows left out."""
    text_tokens: Mapping[str, int]
    """Folder of a part of the pipeline to the tokens that it reads of a prompt, padding and
    template included; parts that no prompt passes through are not here."""
