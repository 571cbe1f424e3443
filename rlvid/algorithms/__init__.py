"""Credit and loss: from scores to advantages, and from advantages to a gradient."""

from __future__ import annotations

from collections.abc import Mapping

ALGORITHMS: Mapping[str, str] = {
    "grpo": "rlvid.algorithms.grpo:Grpo",
}
"""Short name of `algorithm.use` to its class; strings, so that listing them imports no torch."""
