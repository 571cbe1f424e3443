"""The noise levels of a recipe: a time shift of even levels, or what the model's scheduler says.

Whoever makes a plan asks here, the driver included, so nothing loads weights: a family's own
`sigmas` is asked of an adapter whose parts have no memory. That imports diffusers, once, and only
where the recipe names no shift.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlvid.flow.sigmas import LevelTable, Shift, shifted_sigmas
from rlvid.models import MODELS, model_folder
from rlvid.plugins import resolve

if TYPE_CHECKING:
    from rlvid.config.model import ModelConfig

TINY_SHIFT = 3.0
"""Of the shipped model where the recipe names none: what all its figures were measured with. Its
scheduler has the same shift, but diffusers' levels begin at 1 and shift the last one twice."""

TABLE_STEPS = 1000
"""Levels of a table, as many as there are training timesteps in every family."""

_FLOW = (None, "flow_prediction")
"""`prediction_type` of the schedulers of flow models; those made for nothing else lack it."""

ClipSize = tuple[int, int, int]
"""(num_frames, height, width) in pixels."""


def sampling_sigmas(shift: float | None, model: ModelConfig, num_steps: int) -> tuple[float, ...]:
    """Return num_steps + 1 descending noise levels to sample the recipe's clip with.

    Args:
        shift: `rollout.shift`; None asks the scheduler of `model.path`.

    Raises:
        ValueError: the family takes no shift, or says no levels, or none for that clip.
    """
    shift = _known_shift(shift, model)
    return _own_sigmas(model, num_steps) if shift is None else shifted_sigmas(num_steps, shift)


def training_shift(shift: float | None, model: ModelConfig) -> Shift:
    """Return what turns even times into the noise levels that training draws.

    Of a scheduler it is a table of its own levels, so that training visits what sampling visits.

    Raises:
        ValueError: as `sampling_sigmas`.
    """
    shift = _known_shift(shift, model)
    if shift is not None:
        return shift
    behind_the_first = _own_sigmas(model, TABLE_STEPS)[1:]
    return LevelTable((*reversed(behind_the_first), 1.0))


def _known_shift(shift: float | None, model: ModelConfig) -> float | None:
    if shift is None:
        return TINY_SHIFT if model.path == "tiny" else None
    kind = _prediction_type(model_folder(model))
    if kind not in _FLOW:
        raise ValueError(
            f"rollout.shift: {model.path!r} is no flow model, its scheduler has prediction_type "
            f"{kind!r} and a table of noise levels: expected null, got {shift:g}. Leave it out."
        )
    return shift


@lru_cache(maxsize=8)
def _prediction_type(folder: Path) -> str | None:
    """Return what the folder's scheduler says that the model predicts, if it does."""
    path = folder / "scheduler" / "scheduler_config.json"
    return json.loads(path.read_text()).get("prediction_type") if path.is_file() else None


def _own_sigmas(model: ModelConfig, num_steps: int) -> tuple[float, ...]:
    family = resolve(model.use, MODELS, where="model.use")
    size = (model.num_frames, model.height, model.width)
    return _family_sigmas(family, model_folder(model), num_steps, size)


@lru_cache(maxsize=32)
def _family_sigmas(family: Any, folder: Path, num_steps: int, size: ClipSize) -> tuple[float, ...]:
    from rlvid.models.pipeline_model import PipelineModel

    if not (isinstance(family, type) and issubclass(family, PipelineModel)):
        raise ValueError(
            f"rollout.shift: null asks a PipelineModel of rlvid for its noise levels, "
            f"{family.__name__} is none: expected a number, e.g. 3.0."
        )
    levels = getattr(_adapter(family, folder), "sigmas", None)
    if levels is None:
        raise ValueError(
            f"rollout.shift: null asks {family.__name__} for `sigmas(num_steps, num_frames, "
            "height, width)`, which it lacks: expected a number, e.g. 3.0, or that method."
        )
    found: tuple[float, ...] = levels(num_steps, *size)
    return found


@lru_cache(maxsize=4)
def _adapter(family: Any, folder: Path) -> Any:
    """Return an adapter without weights whose own tensors are on the CPU: a table is read."""
    from rlvid.models.meta import pipeline_without_weights

    return family(pipeline_without_weights(family, folder), device=torch.device("cpu"))
