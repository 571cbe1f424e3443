"""A distilled student: how it is sampled, kept beside its weights, and the sampling itself.

A student asked for the teacher's many steps with guidance makes worse clips than either, so what it
was trained for travels with its weights, as `sampling.json` in the policy's folder.

Letters: B clips, C F H W latents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.flow.few_step import denoise_to_exit, fresh_noise
from rlvid.flow.sampler import initial_noise
from rlvid.flow.self_forcing import roll_out
from rlvid.models.base import VideoModel
from rlvid.models.causal_layout import BlockLayout

if TYPE_CHECKING:
    from rlvid.models.causal_wan import CausalWan

SAMPLING_FILE = "sampling.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSampling:
    """How a student is sampled; never with guidance, which is in its weights."""

    sigmas: tuple[float, ...]
    """Noise levels, descending from 1 (`rlvid.flow.few_step.student_sigmas`)."""
    layout: BlockLayout | None = None
    """Blocks of a causal student; None denoises the whole clip at once."""

    def save(self, folder: Path) -> None:
        """Write `sampling.json` beside the weights."""
        (folder / SAMPLING_FILE).write_text(json.dumps(self.to_json(), indent=1) + "\n")

    def to_json(self) -> dict[str, Any]:
        layout = None if self.layout is None else asdict(self.layout)
        return {"sigmas": list(self.sigmas), "layout": layout}

    @classmethod
    def load(cls, folder: Path) -> StudentSampling | None:
        """Return what `save` wrote, or None where there is no such file: no student.

        Raises:
            ValueError: the file says something else.
        """
        path = folder / SAMPLING_FILE
        if not path.is_file():
            return None
        try:
            tree: dict[str, Any] = json.loads(path.read_text())
            layout = tree["layout"]
            return cls(
                sigmas=tuple(float(sigma) for sigma in tree["sigmas"]),
                layout=None if layout is None else BlockLayout(**layout),
            )
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"policy: {path} does not say how the student is sampled: "
                f"{type(error).__name__}: {error}. Copy the folder again, complete."
            ) from error


class Student:
    """A model sampled as a student, in training and after it."""

    def __init__(self, model: VideoModel, sampling: StudentSampling, *, dtype: str) -> None:
        """`dtype` is `model.dtype` of the recipe; a causal student needs a Wan transformer."""
        self._model = model
        self.sampling = sampling
        self.causal: CausalWan | None = None
        if sampling.layout is not None:
            self.causal = open_causal(model, sampling.layout, dtype)

    def generate(
        self,
        seeds: Sequence[int],
        latent_shape: Sequence[int],
        condition: Condition,
        *,
        step_seeds: Sequence[int] | None = None,
        exit_step: int | None = None,
    ) -> Tensor:
        """Return the latents [B, C, F, H, W] of one clip per seed, float32.

        It starts from `initial_noise(seed)`, as the ODE sampler does. With `exit_step` they are
        what is predicted at that level, with gradient there alone; call it without gradient to
        sample.

        Args:
            latent_shape: (C, F, H, W) of a clip.
            condition: of B rows.
            step_seeds: one per clip, of the noise between levels; None takes `seeds`. Rollouts that
                share their start differ by it.
        """
        sigmas = self.sampling.sigmas
        if self.causal is not None:
            num_blocks = self.causal.layout.num_blocks(latent_shape[1])
            blocks = self.blocks(
                seeds,
                latent_shape,
                condition,
                num_blocks=num_blocks,
                step_seeds=step_seeds,
                exit_step=exit_step,
            )
            return torch.cat(list(blocks), dim=2)

        def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
            return self._model.velocity(latents, sigma, condition)

        noise = partial(self._noise, seeds, step_seeds or seeds, latent_shape, 0)
        return denoise_to_exit(velocity, noise(0), sigmas, step_noise=noise, exit_step=exit_step)

    def blocks(
        self,
        seeds: Sequence[int],
        latent_shape: Sequence[int],
        condition: Condition,
        *,
        num_blocks: int | None,
        step_seeds: Sequence[int] | None = None,
        exit_step: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield the blocks of `generate` as they are made, and go on behind its end.

        Args:
            num_blocks: None has no end; a layout without a window attends to ever more.

        Raises:
            ValueError: the student is not causal.
        """
        if self.causal is None:
            raise ValueError(
                "student: it denoises whole clips, so there are no blocks to yield; expected the "
                "policy of a causal stage (causal_init, self_forcing)"
            )
        return roll_out(
            self.causal,
            condition,
            self.sampling.sigmas,
            noise=partial(self._noise, seeds, step_seeds or seeds, latent_shape),
            num_blocks=num_blocks,
            exit_step=exit_step,
        )

    def _noise(
        self,
        seeds: Sequence[int],
        step_seeds: Sequence[int],
        latent_shape: Sequence[int],
        block: int,
        level: int,
    ) -> Tensor:
        """Return the noise of a block at a level; that of a clip's start is `initial_noise`'s."""
        channels, frames, height, width = latent_shape
        layout = self.sampling.layout
        size = frames if layout is None else layout.frames_per_block
        if level == 0 and (block + 1) * size <= frames:
            whole = torch.stack([initial_noise(seed, latent_shape) for seed in seeds])
            return whole[:, :, block * size : (block + 1) * size].to(self._model.device)
        drawn = fresh_noise(
            step_seeds if level else seeds, (channels, size, height, width), block, level
        )
        return drawn.to(self._model.device)


def open_causal(model: VideoModel, layout: BlockLayout, dtype: str) -> CausalWan:
    """Return the block-causal form of a model's transformer, wrapped or not.

    Args:
        dtype: `model.dtype` of the recipe.

    Raises:
        ValueError: it is no Wan transformer.
    """
    from rlvid.models.causal_wan import CausalWan

    return CausalWan(model.transformer, layout, dtype=getattr(torch, dtype))
