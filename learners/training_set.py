"""What supervised fine-tuning trains on: latents, captions, weights, and real clips beside them.

Synthetic clips of a data set are read as the policy made them, row by row from the disk. Real
clips, and clips of any other source, are encoded once by the model's own VAE (`latents`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rlvid.algorithms.reward_weighted import clip_weights, keep_best, standardise
from rlvid.condition import Condition, concatenate
from rlvid.config import ModelConfig, SftConfig
from rlvid.config.sft import WeightingConfig
from rlvid.data.clips import clip_shape
from rlvid.data.engine.manifest import SUMMARY, read_manifest, read_summary
from rlvid.data.engine.real_clips import ManifestClips
from rlvid.data.engine.records import ClipKind, ClipRecord
from rlvid.data.engine.store import open_rows
from rlvid.learners.latents import clips_of, open_latents
from rlvid.learners.own_frames import needed_frames
from rlvid.learners.ranks import Ranks
from rlvid.models.base import VideoModel

SYNTHETIC: tuple[ClipKind, ...] = ("synthetic", "recaption")
"""Kinds of clips that a policy rendered."""
OPEN_FILES = 256
"""Files of a data set kept open by a rank."""


class ClipSource(Protocol):
    """Clips by index."""

    def __len__(self) -> int: ...

    def latents(self, index: int) -> Tensor:
        """Return [C, F, H, W] float32."""
        ...

    def text(self, index: int) -> str: ...

    def frames(self, index: int) -> Condition | None:
        """Return what the model is told of the clip's own frames, one row; None where nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """Clips with a weight each, and the real clips of the anchor."""

    clips: ClipSource
    weights: Tensor
    """[N] float32."""
    dimensions: tuple[str, ...]
    """[N] what each clip was made for; "" where for nothing."""
    real: ClipSource | None = None


class StoredClips:
    """Synthetic clips of a data set."""

    def __init__(self, folder: Path, records: Sequence[ClipRecord]) -> None:
        self._records = records
        self._rows = lru_cache(maxsize=OPEN_FILES)(partial(open_rows, folder))

    def __len__(self) -> int:
        return len(self._records)

    def latents(self, index: int) -> Tensor:
        record = self._records[index]
        row: Tensor = self._rows(record.file)[record.row]
        return row

    def text(self, index: int) -> str:
        return self._records[index].text

    def frames(self, index: int) -> None:
        """Return None: the data engine renders by text alone."""


def clip_condition(
    model: VideoModel, texts: Sequence[str], frames: Sequence[Condition | None]
) -> Condition:
    """Return what the model is told of B clips: texts, and their own frames where it needs them."""
    condition, told = model.encode_prompts(texts), [rows for rows in frames if rows is not None]
    return condition | concatenate(told).to(model.device) if told else condition


def is_dataset(source: str) -> bool:
    """Return whether `sft.clips` names a data set of the phase data_engine."""
    return (Path(source).expanduser() / SUMMARY).is_file()


def count_clips(config: SftConfig) -> dict[str, int]:
    """Return the clips that each dimension of the data set is trained on; in order of the names.

    Clips that were made for no dimension are not counted.

    Raises:
        ValueError: no data set, or a dimension without clips that the weighting keeps.
    """
    if not is_dataset(config.clips):
        raise _needs_dataset(config)
    source = Path(config.clips).expanduser()
    records: dict[str, list[ClipRecord]] = {}
    for record in read_manifest(source, kinds=SYNTHETIC):
        if record.dimension:
            records.setdefault(record.dimension, []).append(record)
    return {
        dimension: len(weighted(found, config.weighting, where=_place(source, dimension))[0])
        for dimension, found in sorted(records.items())
    }


def open_training_set(
    folder: Path,
    config: SftConfig,
    model_config: ModelConfig,
    model: VideoModel,
    ranks: Ranks,
    *,
    dimension: str | None = None,
    where: str = "sft.clips",
) -> TrainingSet:
    """Return what the section asks for; encode into `folder` what has no latents. A collective.

    Args:
        dimension: of a data set, take its clips alone, weighted among themselves, and the real
            ones; None takes all.
        where: the recipe path that names the clips, for errors.

    Raises:
        ValueError: a data set that is unfinished, of another shape, or without what is asked of it;
            weights or an anchor for clips that are no data set.
    """
    if is_dataset(config.clips):
        return _of_dataset(folder, config, model_config, model, ranks, dimension, where)
    if config.weighting != WeightingConfig() or config.anchor.beta or config.balance != "none":
        raise _needs_dataset(config)
    settings = {
        "clips": config.clips,
        "num_clips": config.num_clips,
        "clip_seed": config.clip_seed,
    }
    named = clips_of(config, model_config, where=where)
    clips = open_latents(folder, named, settings, model_config, model, ranks, where=where)
    return TrainingSet(clips=clips, weights=torch.ones(len(clips)), dimensions=("",) * len(clips))


def _needs_dataset(config: SftConfig) -> ValueError:
    return ValueError(
        f"sft: weighting, anchor and balance need a data set of phase data_engine, got clips "
        f"{config.clips!r}. Run that phase before and set sft.clips to artifact:<its name>."
    )


def _of_dataset(
    folder: Path,
    config: SftConfig,
    model_config: ModelConfig,
    model: VideoModel,
    ranks: Ranks,
    dimension: str | None,
    where: str,
) -> TrainingSet:
    source = Path(config.clips).expanduser()
    check_shape(source, model_config, where=where)
    check_needs_no_frames(model, where=where)
    records = list(read_manifest(source, kinds=SYNTHETIC))
    if dimension is not None:
        records = [record for record in records if record.dimension == dimension]
    kept, weights = weighted(records, config.weighting, where=_place(source, dimension))
    real = None
    if config.anchor.beta:
        rows = list(read_manifest(source, kinds=("real",)))
        if not rows:
            raise ValueError(
                f"sft.anchor.beta: the data set {str(source)!r} has no real clips. Set "
                "data_engine.real.source, or beta to 0."
            )
        shape = clip_shape(model_config)
        settings = {"dataset": read_summary(source)["digest"]}
        clips = ManifestClips(source, rows, shape)
        real = open_latents(
            folder / "real", clips, settings, model_config, model, ranks, where="sft.anchor"
        )
    return TrainingSet(
        clips=StoredClips(source, kept),
        weights=weights,
        dimensions=tuple(record.dimension for record in kept),
        real=real,
    )


def weighted(
    records: Sequence[ClipRecord], config: WeightingConfig, *, where: str
) -> tuple[list[ClipRecord], Tensor]:
    """Return the clips that are trained on, and the weight of each, [N] float32.

    A clip without the score that is asked for is left out: it is never weighted as if it were 0.

    Raises:
        ValueError: no clip is left.
    """
    needs_score = config != WeightingConfig()
    known = [r for r in records if not needs_score or _score(r, config) is not None]
    if not known:
        raise ValueError(
            f"sft.weighting: no clip of {where!r} has the score that it asks for "
            f"(by: {config.by}), of {len(records)}. Look at the scorers of the data_engine run."
        )
    if not needs_score:
        return list(known), torch.ones(len(known))
    rewards = torch.tensor([_score(r, config) for r in known], dtype=torch.float64)
    groups = [r.prompt_id for r in known]
    kept = keep_best(
        rewards, groups, best_frac=config.best_frac, min_reward=config.min_reward
    ).nonzero()
    places = kept.flatten().tolist()
    if not places:
        raise ValueError(
            f"sft.weighting.min_reward: no clip of {where!r} reaches {config.min_reward}; the best "
            f"has {float(rewards.max()):.3f}."
        )
    chosen = [known[place] for place in places]
    rewards = rewards[places]
    if config.standardise:
        rewards = standardise(rewards, [r.dimension for r in chosen])
    weights = clip_weights(
        rewards,
        [r.prompt_id for r in chosen],
        kind=config.kind,
        temperature=config.temperature,
        max_weight=config.max_weight,
        normalise=config.normalise,
    )
    return chosen, weights


def check_needs_no_frames(model: VideoModel, *, where: str) -> None:
    """Refuse a data set of the phase data_engine for a model that is told a frame with the text.

    Raises:
        ValueError: its clips were rendered by a text alone, and nobody kept their frames.
    """
    if frames := needed_frames(model):
        raise ValueError(
            f"{where}: a data set holds clips of texts alone, and {type(model).__name__} needs "
            f"{list(frames)} with each: expected a folder of .mp4 clips, whose own frames it is "
            "told, or a text-to-video model."
        )


def _place(source: Path, dimension: str | None) -> str:
    """Return what errors call the clips."""
    return str(source) if dimension is None else f"{source}, dimension {dimension}"


def _score(record: ClipRecord, config: WeightingConfig) -> float | None:
    if config.by == "dimension" and record.dimension:
        return record.scores.get(record.dimension)
    return record.reward


def check_shape(source: Path, model: ModelConfig, *, where: str) -> None:
    """Raise ValueError unless the clips of a data set are of the size that the model makes.

    Args:
        where: the recipe path that names it.
    """
    made: Mapping[str, Any] = read_summary(source)["rendering"]
    wanted = [model.num_frames, model.height, model.width]
    if list(made["shape"]) != wanted:
        raise ValueError(
            f"{where}: the data set {str(source)!r} holds clips of {made['shape']} (frames, "
            f"height, width), the model makes {wanted}. Set the model's size, or make it again."
        )
