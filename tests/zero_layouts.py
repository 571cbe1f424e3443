"""ZeRO stages by short names, with offload or without, for tests that go through them."""

from __future__ import annotations

from typing import Any


def learner_section(layout: str) -> dict[str, Any]:
    """Return the keys of section learner that "2" or "3-offload" stands for.

    Offload is of the optimiser, and at stage 3 of the parameters as well.
    """
    stage, _, offload = layout.partition("-")
    if not offload:
        return {"zero_stage": int(stage)}
    return {
        "zero_stage": int(stage),
        "offload": {"optimizer": "cpu", "parameters": "cpu" if stage == "3" else "none"},
    }
