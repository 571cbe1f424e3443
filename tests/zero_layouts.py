"""ZeRO stages by short names, with offload or without, for tests that go through them."""

from __future__ import annotations

import tempfile
from typing import Any


def learner_section(layout: str) -> dict[str, Any]:
    """Return the keys of section learner that "2", "3-offload" or "2-disk" stands for.

    Offload is of the optimiser, and at stage 3 of the parameters as well. What is on disk has no
    name there.
    """
    stage, _, offload = layout.partition("-")
    if not offload:
        return {"zero_stage": int(stage)}
    place = {"optimizer": "cpu"}
    if offload == "disk":
        place = {"optimizer": "disk", "folder": tempfile.gettempdir()}
    return {
        "zero_stage": int(stage),
        "offload": {**place, "parameters": "cpu" if stage == "3" else "none"},
    }
