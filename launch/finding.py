"""What a check of the doctor is, and what it found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    check: str
    state: str
    """"ok", "note" (works, but know this) or "broken" (a run will fail)."""
    text: str


@dataclass(frozen=True, slots=True)
class Note:
    """Returned by a check whose finding is worth knowing and breaks nothing."""

    text: str


Check = Callable[[], str | Note]


def run_check(name: str, check: Check) -> Finding:
    """Return the finding of one check; whatever it raises is what is broken."""
    try:
        found = check()
    except Exception as error:  # a doctor reports every failure, of whatever kind
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Finding(check=name, state="broken", text=text)
    if isinstance(found, Note):
        return Finding(check=name, state="note", text=found.text)
    return Finding(check=name, state="ok", text=found)
