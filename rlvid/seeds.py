"""One function from which every seed of a run comes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping


def derive_seed(recipe_seed: int, *parts: str | int) -> int:
    """Return a seed in [0, 2**63) for (recipe seed, prompt id, visit, index, purpose, ...).

    The same parts give the same seed on every machine, so rollouts do not depend on how many
    actors share the work.
    """
    text = "/".join(str(part) for part in (recipe_seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def prompt_id(text: str, media: Mapping[str, str] | None = None) -> str:
    """Return the stable id of a prompt: 16 hex digits.

    Args:
        media: name to the digest of what its file holds (`rlvid.media.digest_media`): a prompt
            stays the same wherever its files lie, and is another with another picture.
    """
    told = json.dumps([text, sorted(media.items())]) if media else text
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()
