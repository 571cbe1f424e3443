"""Intake of real clips with captions: sources, decoding, shots, measures and the filters on them.

`Intake` is the way in; the rest is here for tests and for whoever measures clips in another way.
"""

from rlvid.data.intake.drops import REASONS, Drop, DropCounts, DropReason
from rlvid.data.intake.intake import Intake, RealClip
from rlvid.data.intake.measures import TextArea
from rlvid.data.intake.shots import find_shots
from rlvid.data.intake.sources import RawClip, read_source

__all__ = [
    "REASONS",
    "Drop",
    "DropCounts",
    "DropReason",
    "Intake",
    "RawClip",
    "RealClip",
    "TextArea",
    "find_shots",
    "read_source",
]
