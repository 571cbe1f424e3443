"""Checkpoints of a training phase."""

from __future__ import annotations

from pydantic import Field

from rlvid.config.base import Section


class CheckpointConfig(Section):
    """Checkpoints of a training phase."""

    every: int = Field(default=10, ge=1)
    """Optimiser steps."""
    keep: int = Field(default=2, ge=1)
