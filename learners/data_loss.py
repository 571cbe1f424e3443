"""Clips beside the RL batch: their flow-matching loss pulls the policy to good data.

    L = 1/N sum_i L_RL,i  +  coefficient / B sum_j || v - (noise - clean_j) ||^2

with N trained rows and B clips over all ranks (DDRL, arXiv:2512.04332; `data_regulariser`). Clips,
noise and noise levels follow from recipe seed and optimiser step, so neither ranks, chunks nor a
resume change them. They close the gradient of an update, when its trained rows are known.

Letters: B clips of an update over all ranks, C F H W latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlvid.algorithms.data_regulariser import data_loss
from rlvid.algorithms.flow_matching import add_noise, sample_sigma
from rlvid.condition import Condition
from rlvid.config import ModelConfig
from rlvid.config.algorithm import DataLossConfig
from rlvid.data.clips import ClipSet, clip_shape, open_clips
from rlvid.data.engine.manifest import read_manifest
from rlvid.data.engine.real_clips import ManifestClips
from rlvid.flow.sigmas import Shift
from rlvid.learners.own_frames import own_frames
from rlvid.learners.rows import split_rows
from rlvid.learners.trainee import Trainee
from rlvid.learners.training_set import (
    SYNTHETIC,
    ClipSource,
    StoredClips,
    check_needs_no_frames,
    check_shape,
    clip_condition,
    is_dataset,
)
from rlvid.models.base import VideoModel
from rlvid.seeds import derive_seed

WHERE = "algorithm.data_loss.clips"


class EncodedClips:
    """Clips that the model's VAE encodes when they are asked for; see `ClipSource`."""

    def __init__(self, clips: ClipSet, model: VideoModel) -> None:
        self._clips = clips
        self._model = model

    def __len__(self) -> int:
        return len(self._clips)

    def latents(self, index: int) -> Tensor:
        """Return [C, F, H, W] float32, encoded alone: the same in any batch."""
        video, _ = self._clips.clip(index)
        return self._model.encode(video[None])[0]

    def text(self, index: int) -> str:
        return self._clips.clip(index)[1]

    def frames(self, index: int) -> Condition | None:
        """Return what the model is told of the clip's own frames, one row; None where nothing."""
        return own_frames(self._model, self._clips.clip(index)[0][None])


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRows:
    """Everything random about the clips of one update, over all ranks."""

    indices: list[int]
    """[B]."""
    sigma: Tensor
    """[B] float32."""
    noise: Tensor
    """[B, C, F, H, W] float32."""


class DataLoss:
    """Adds the gradient of clips to that of an update."""

    def __init__(
        self, config: DataLossConfig, clips: ClipSource, trainee: Trainee, *, shift: Shift
    ) -> None:
        """Args:
        shift: of the sampler's noise levels.
        """
        self._config = config
        self._clips = clips
        self._trainee = trainee
        self._shift = shift

    def rows(self, update: int) -> DataRows:
        """Return what optimiser step `update` (0-based) adds, the same on every rank."""
        config, settings = self._config, self._trainee.settings
        generator = torch.Generator().manual_seed(derive_seed(settings.seed, "data_loss", update))
        model = settings.model
        shape = self._trainee.model.latent_shape(model.num_frames, model.height, model.width)
        indices = torch.randint(len(self._clips), (config.batch_size,), generator=generator)
        return DataRows(
            indices=indices.tolist(),
            sigma=sample_sigma(
                config.batch_size,
                density=config.timestep_density,
                shift=self._shift,
                generator=generator,
            ),
            noise=torch.randn(config.batch_size, *shape, generator=generator),
        )

    def add_gradient(self, divisor: float) -> float:
        """Add the gradient of the next optimiser step's clips, and complete the sum over ranks.

        A collective.

        Args:
            divisor: what the step will divide the whole gradient by (`Trainee.step`).

        Returns:
            The mean flow-matching loss of the clips of all ranks, the coefficient apart.
        """
        trainee, size = self._trainee, self._config.batch_size
        drawn = self.rows(trainee.optimizer_steps)
        limit = trainee.settings.learner.micro_batch_rows
        parts = split_rows(range(size), trainee.engine.ranks, limit)
        total = 0.0
        for number, (rows, counted) in enumerate(parts):
            loss = (self._losses(drawn, rows) * counted.to(trainee.engine.device)).sum()
            trainee.engine.backward(loss * (divisor / size), is_last=number == len(parts) - 1)
            total += float(loss.detach())
        return trainee.engine.ranks.sum([total])[0] / (size * self._config.coefficient)

    def _losses(self, drawn: DataRows, rows: list[int]) -> Tensor:
        """Return the weighted loss of some rows, under the clips' own captions, unguided."""
        model, device = self._trainee.model, self._trainee.engine.device
        indices = [drawn.indices[row] for row in rows]
        clean = torch.stack([self._clips.latents(index) for index in indices]).to(device)
        noise, sigma = drawn.noise[rows].to(device), drawn.sigma[rows].to(device)
        condition = clip_condition(
            model,
            [self._clips.text(index) for index in indices],
            [self._clips.frames(index) for index in indices],
        )
        velocity = model.velocity(add_noise(clean, noise, sigma), sigma, condition)
        return data_loss(velocity, clean, noise, coefficient=self._config.coefficient)


def open_data_loss(config: DataLossConfig, trainee: Trainee, *, shift: Shift) -> DataLoss | None:
    """Return what the recipe asks for; None with a coefficient of 0.

    Raises:
        ValueError: the clips are not there, are none, or are of another size than the model's.
    """
    if config.coefficient == 0.0:
        return None
    clips = _open_clips(config, trainee.settings.model, trainee.model)
    if not len(clips):
        raise ValueError(f"{WHERE}: {config.clips!r} holds no clip: expected at least one")
    return DataLoss(config, clips, trainee, shift=shift)


def _open_clips(config: DataLossConfig, model_config: ModelConfig, model: VideoModel) -> ClipSource:
    shape = clip_shape(model_config)
    if not is_dataset(config.clips):
        clips = open_clips(
            config.clips,
            shape,
            num_clips=config.num_clips,
            clip_seed=config.clip_seed,
            where=WHERE,
        )
        return EncodedClips(clips, model)
    folder = Path(config.clips).expanduser()
    check_shape(folder, model_config, where=WHERE)
    real = list(read_manifest(folder, kinds=("real",)))
    if real:
        return EncodedClips(ManifestClips(folder, real, shape), model)
    check_needs_no_frames(model, where=WHERE)
    return StoredClips(folder, list(read_manifest(folder, kinds=SYNTHETIC)))
