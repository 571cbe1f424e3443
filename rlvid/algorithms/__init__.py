"""Credit and loss: from scores to advantages, and from advantages to a gradient."""

from __future__ import annotations

from collections.abc import Mapping

ALGORITHMS: Mapping[str, str] = {
    "grpo": "rlvid.algorithms.grpo:Grpo",
    "nft": "rlvid.algorithms.nft:Nft",
    "awm": "rlvid.algorithms.awm:Awm",
    "dpo": "rlvid.algorithms.dpo:Dpo",
    "refl": "rlvid.algorithms.refl:Refl",
}
"""Short name of `algorithm.use` to its class; strings, so that listing them imports no torch."""
