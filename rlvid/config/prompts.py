"""The `prompts` section: where prompts come from."""

from __future__ import annotations

from typing import Literal

from rlvid.config.base import Section


class PromptsConfig(Section):
    """A prompt set; order is fixed by the recipe's seed."""

    source: str = "tiny_world"
    """"tiny_world"; "tiny_world_vague", the same wishes in a user's words (`tiny_world.vague`); or
    a .txt (a prompt a line) or .jsonl ({"text": ..., "facts": {...}, "media": {"first_frame":
    ...}}) file; paths of media start at its folder."""
    split: Literal["train", "heldout", "all"] = "train"
    """Of the tiny world; a file is one split and takes "all"."""
    limit: int | None = None
    """Use only the first prompts of the split."""
