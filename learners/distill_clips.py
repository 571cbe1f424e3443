"""Clean clips of a stage of distillation: all of them, each pass in another order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlvid.config import SftConfig
from rlvid.config.distillation import ClipsConfig
from rlvid.data.prompts import seeded_order
from rlvid.learners.distill import StageLearner
from rlvid.learners.training_set import open_training_set


class CleanClips:
    """Latents and captions by step and row, whatever ranks and micro-batches there are."""

    def __init__(self, stage: StageLearner, config: ClipsConfig, *, place: str) -> None:
        """Encode what is not encoded yet into the stage's folder; a collective of all ranks.

        Args:
            place: of `config` in the section, "few_step.gan" or the like, for errors.
        """
        self._stage = stage
        source = SftConfig(
            clips=config.clips, num_clips=config.num_clips, clip_seed=config.clip_seed
        )
        settings = stage.settings
        self._clips = open_training_set(
            settings.folder,
            source,
            settings.trainee.model,
            stage.trainee.model,
            stage.trainee.engine.ranks,
            where=f"distillation.{place}.clips",
        ).clips

    def of(self, step: int, rows: Sequence[int]) -> tuple[Tensor, list[str]]:
        """Return the clips of rows of a step, [len(rows), C, F, H, W] float32, and their texts."""
        size = self._stage.settings.stage_config.batch_size
        indices = [self._index(step * size + row) for row in rows]
        clean = torch.stack([self._clips.latents(index) for index in indices])
        texts = [self._clips.text(index) for index in indices]
        return clean.to(self._stage.trainee.engine.device), texts

    def _index(self, visit: int) -> int:
        """Return the clip of the stage's `visit`-th row."""
        epoch, place = divmod(visit, len(self._clips))
        order = seeded_order(self._stage.seed("order"), "clips", epoch, len(self._clips))
        return order[place]
