"""The one error of a publish that must not be used."""

from __future__ import annotations


class WeightsError(ValueError):
    """A publish that must not be used; the message names tensor or bucket, expected and got.

    What was held before it is held still, so a caller may fetch again.
    """
