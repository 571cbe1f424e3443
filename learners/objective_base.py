"""What most objectives have alike: an engine that comes late, and nothing to do at most moments."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rlvid.learners.open_batch import OpenBatch
from rlvid.learners.publish import WeightsSource
from rlvid.learners.zero_engine import ZeroEngine


class ObjectiveBase:
    """The part of `learners.objective.Objective` that an objective changes only where it must.

    As it stands nothing is replayed, no policy lags behind the one in training, and there is
    nothing that a resume would need.
    """

    _engine: ZeroEngine | None = None

    def attach(self, engine: ZeroEngine) -> None:
        """Take the engine."""
        self._engine = engine

    def check_start(self, batch: OpenBatch) -> None:
        """Nothing is replayed, so nothing can be off."""

    def after_step(self, optimizer_step: int) -> None:
        """Nothing follows single updates."""

    def after_batch(self, step: int) -> None:
        """Nothing follows whole batches."""

    def published(self) -> WeightsSource | None:
        """Return None: actors sample with the live parameters."""
        return None

    def speaking_as_published(self) -> AbstractContextManager[None]:
        """The model speaks for itself."""
        return nullcontext()

    def save(self, folder: Path) -> None:
        """Write nothing."""

    def load(self, folder: Path) -> None:
        """Read nothing."""

    @property
    def _attached(self) -> ZeroEngine:
        assert self._engine is not None, "the learner attaches its engine when it has wrapped"
        return self._engine
