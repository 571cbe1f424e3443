"""The old policy of nft and awm: an average that follows the policy, and speaks and samples too.

Float32 averages are shared out over the ranks as those of `learner.ema`; what speaks is a frozen
copy of the transformer in its own dtype, whole on each rank. Of a LoRA policy at ZeRO 0 to 2 the
copy shares the base with the policy, and only the adapter is held twice.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rlvid.algorithms.old_policy import DecayRamp
from rlvid.config import LearnerConfig
from rlvid.learners.ema import Average
from rlvid.learners.zero_engine import ZeroEngine
from rlvid.models.base import VideoModel
from rlvid.weights import trainable_parameters

STEM = "old-policy"


class OldPolicy:
    """Lets the model speak as the old policy for the length of a block, and moves that policy."""

    def __init__(self, model: VideoModel, ramp: DecayRamp, config: LearnerConfig) -> None:
        """Take the copy; `model.transformer` is still bare here, and ready for training."""
        self._model = model
        self._ramp = ramp
        self._mode = config.mode
        # Stage 3 empties the parameters it shards, and would empty the copy's with them.
        shared = [] if config.zero_stage == 3 else _frozen(model.transformer)
        self._copy = copy.deepcopy(model.transformer, {id(value): value for value in shared})
        for value in trainable_parameters(self._copy, self._mode).values():
            value.requires_grad_(False)
        self._average: Average | None = None

    def attach(self, engine: ZeroEngine) -> None:
        """Start the average from the engine's values; a collective."""
        self._average = Average(engine, stem=STEM)

    @property
    def average(self) -> Average:
        """What is published of it."""
        assert self._average is not None, "the learner attaches its engine when it has wrapped"
        return self._average

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Within the block `model.velocity` is the old policy's."""
        policy, self._model.transformer = self._model.transformer, self._copy
        try:
            yield
        finally:
            self._model.transformer = policy

    def after_batch(self, step: int) -> None:
        """Follow the policy after batch `step` (0-based) by the ramp's decay; a collective."""
        self.average.move(self._ramp.decay(step))
        self._refresh()

    def save(self, folder: Path) -> None:
        """Write this rank's averages."""
        self.average.save(folder)

    def load(self, folder: Path) -> None:
        """Read this rank's averages of what any number of ranks wrote; a collective."""
        self.average.load(folder)
        self._refresh()

    def _refresh(self) -> None:
        """Bring the copy to the averages, as they are published."""
        held = trainable_parameters(self._copy, self._mode)
        with torch.no_grad():
            for name, value in self.average.full_parameters():
                held[name].copy_(value)


def _frozen(module: torch.nn.Module) -> list[torch.Tensor]:
    """Return what training leaves alone, buffers included."""
    return [value for value in module.parameters() if not value.requires_grad] + list(
        module.buffers()
    )
