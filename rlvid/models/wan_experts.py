"""Wan 2.2 A14B: one expert for high noise, one for low, both trained.

Noise levels from the folder's `boundary_ratio` on belong to `transformer`, those below to
`transformer_2`; the pipeline's own default is one guidance scale for both, which is rlvid's as
well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from rlvid.models.pipeline_model import PipelineModel, read_index
from rlvid.models.wan import NUM_TRAIN_TIMESTEPS, WanModel


class WanExpertsModel(WanModel):
    """A WanPipeline with two transformers as a `VideoModel`."""

    PARTS: ClassVar[tuple[str, ...]] = (*PipelineModel.PARTS, "transformer_2")

    def __init__(
        self, pipeline: Any, *, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        from rlvid.models.experts import TwoExperts  # imports diffusers

        super().__init__(pipeline, device=device, dtype=dtype)
        self._experts = TwoExperts(
            pipeline.transformer,
            pipeline.transformer_2,
            boundary_timestep=pipeline.config.boundary_ratio * NUM_TRAIN_TIMESTEPS,
        )
        self.transformer = self._experts

    @classmethod
    def check_folder(cls, folder: Path) -> None:
        """Raise ValueError unless `folder` has the layout of a WanPipeline of two experts."""
        index = read_index(folder)
        if index.get("boundary_ratio") is None:
            raise ValueError(
                f"model.path: {folder / 'model_index.json'} has no boundary_ratio: expected the "
                "noise level that divides two transformers. For one transformer set model.use to "
                "wan."
            )
        # Not WanModel's, which refuses two transformers.
        super(WanModel, cls).check_folder(folder)

    def trained_parts(self) -> dict[str, nn.Module]:
        return {"transformer": self._experts.high, "transformer_2": self._experts.low}
