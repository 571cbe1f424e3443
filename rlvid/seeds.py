"""One function from which every seed of a run comes."""

from __future__ import annotations

import hashlib


def derive_seed(recipe_seed: int, *parts: str | int) -> int:
    """Return a seed in [0, 2**63) for (recipe seed, prompt id, visit, index, purpose, ...).

    The same parts give the same seed on every machine, so rollouts do not depend on how many
    actors share the work.
    """
    text = "/".join(str(part) for part in (recipe_seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def prompt_id(text: str) -> str:
    """Return the stable id of a prompt's text: 16 hex digits."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
