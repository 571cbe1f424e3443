"""Memory of the scorers that take turns in one process, by what it is for.

A call takes a batch of clips. On the CPU each of their pixels takes 27 bytes while it becomes what
a scorer is handed: three colours as uint8, and as float32 twice (`rewards/scoring.py`); of these 12
go on to a GPU. What a scorer computes on top of that it declares for one clip, as `WORKING_BYTES`
of its class (`rewards.base.working_bytes_of`). Weights are the files in the folders that its
settings name, or 2 or 4 bytes for each parameter that the name of one speaks of.

What a scorer does not declare is not guessed: the plan names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlvid.config.rewards import ScorerConfig
from rlvid.launch.memory import MIB, nominal_parameters
from rlvid.launch.model_size import ModelSize
from rlvid.plugins import resolve
from rlvid.rewards.base import takes_groups, working_bytes_of
from rlvid.rewards.critics import BUILTIN
from rlvid.rewards.dispatch.lane import LaneSettings
from rlvid.rewards.dispatch.placement import declared_serving

HANDED_BYTES = 27
"""Of each pixel of a batch, in RAM."""
FLOAT_BYTES = 12
"""Of each pixel of a batch that is on a GPU."""
WEIGHT_FILES = ("*.safetensors", "*.pth", "*.pt", "*.bin")
FOLDER_SETTINGS = ("folder", "base_folder")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerMemory:
    """Of all scorers of one process, in MiB."""

    weights: float
    """Of all of them."""
    scoring: float
    """Of the one that needs most, in RAM."""
    on_gpu: float
    """Of the clips of the one that needs most, on its GPU."""
    not_counted: tuple[str, ...]
    """Labels of those that do not say what they work in."""


def scorer_memory(
    scorers: Sequence[ScorerConfig], size: ModelSize, *, group_size: int
) -> ScorerMemory:
    """Return what the scorers of a process need.

    Args:
        group_size: clips of a call to a group-wise scorer; one to another may take clips of several
            groups, as many as its batch size.
    """
    pixels = size.clip_numbers / 3
    scoring, on_gpu, not_counted = 0.0, 0.0, []
    for config in scorers:
        scorer_class = _class_of(config)
        settings = LaneSettings.of(config, declared_serving(config))
        clips = group_size if takes_groups(scorer_class) else settings.batch_size
        working = working_bytes_of(scorer_class)
        if working is None:
            not_counted.append(config.label)
        scoring = max(scoring, pixels * (clips * HANDED_BYTES + (working or 0.0)))
        if settings.device != "cpu":
            on_gpu = max(on_gpu, pixels * clips * FLOAT_BYTES)
    return ScorerMemory(
        weights=sum(map(_weight_bytes, scorers)) / MIB,
        scoring=scoring / MIB,
        on_gpu=on_gpu / MIB,
        not_counted=tuple(not_counted),
    )


def _class_of(config: ScorerConfig) -> object:
    """Return the scorer's class; None where only its replicas can import it."""
    if config.python or config.runtime_env:
        return None
    try:
        return resolve(config.use, BUILTIN, where="use")
    except ValueError:
        return None  # which its replica will say in plain words


def _weight_bytes(config: ScorerConfig) -> float:
    """Return bytes of the weights in the folders of a scorer's settings; 0 without any."""
    names = [str(config.config[key]) for key in FOLDER_SETTINGS if config.config.get(key)]
    folders = [Path(name).expanduser() for name in names]
    files = [
        file
        for folder in set(folders)
        for pattern in WEIGHT_FILES
        for file in folder.rglob(pattern)
    ]
    if files:
        return float(sum(file.stat().st_size for file in files))
    width = 2 if config.config.get("bfloat16") else 4
    return width * max((nominal_parameters(f.name) or 0.0 for f in folders), default=0.0)
