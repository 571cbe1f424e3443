"""What offline dpo trains on: clips, and pairs of them of which one is better.

Clips of a data set are read as the policy made them, row by row from the disk; those of a folder
are encoded once by the model's own VAE (`latents`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from rlvid.algorithms.dpo import pick_pairs
from rlvid.config import ModelConfig, OfflineDpoConfig
from rlvid.config.algorithm import DpoConfig
from rlvid.data.clips import clip_shape
from rlvid.data.engine.manifest import read_manifest
from rlvid.data.engine.records import ClipRecord
from rlvid.data.pairs import PAIRS_FILE, open_folder_pairs
from rlvid.flow.prompt_condition import check_prompt_media
from rlvid.learners.latents import open_latents
from rlvid.learners.ranks import Ranks
from rlvid.learners.training_set import (
    SYNTHETIC,
    ClipSource,
    StoredClips,
    check_needs_no_frames,
    check_shape,
    is_dataset,
)
from rlvid.models.base import VideoModel
from rlvid.records import Prompt
from rlvid.seeds import prompt_id

WHERE = "dpo.pairs"
REWARD = "reward"
"""Of `dpo.by`: the weighted mean of all scorers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """Pairs of clips."""

    clips: ClipSource
    pairs: tuple[tuple[int, int], ...]
    """(chosen, rejected) places among the clips, both of one text."""
    prompts: tuple[Prompt, ...]
    """Of each pair."""


def open_preferences(
    folder: Path,
    config: OfflineDpoConfig,
    model_config: ModelConfig,
    model: VideoModel,
    ranks: Ranks,
) -> Preferences:
    """Return the pairs that the section asks for; encode into `folder` what has no latents.

    A collective.

    Raises:
        ValueError: nothing there, clips of another shape, no pair among them, or prompts without
            the media that the model needs.
    """
    source = Path(config.pairs).expanduser()
    if is_dataset(config.pairs):
        check_shape(source, model_config, where=WHERE)
        check_needs_no_frames(model, where=WHERE)
        return of_dataset(source, config)
    usual, max_pairs = DpoConfig().max_pairs, config.objective.max_pairs
    if config.by != REWARD or config.min_margin or max_pairs != usual:
        raise ValueError(
            f"dpo.by, dpo.min_margin, dpo.objective.max_pairs: are of a data set, whose scores "
            f"make the pairs; {str(source)!r} is none, so expected them left out, got "
            f"{config.by!r}, {config.min_margin:g} and {max_pairs}"
        )
    found = open_folder_pairs(source, clip_shape(model_config))
    for prompt in found.prompts:
        check_prompt_media(model, prompt)
    listed = hashlib.blake2b((source / PAIRS_FILE).read_bytes(), digest_size=16).hexdigest()
    settings = {"pairs": str(source.resolve()), "listed": listed}
    latents = open_latents(
        folder, found.clips, settings, model_config, model, ranks, where=WHERE, keeps_frames=False
    )
    return Preferences(clips=latents, pairs=found.pairs, prompts=found.prompts)


def of_dataset(source: Path, config: OfflineDpoConfig) -> Preferences:
    """Return the best clips of every prompt against its worst, best margin first in a prompt.

    A clip without the score that is asked for is in no pair: it is never taken for a bad one.

    Raises:
        ValueError: no pair is left.
    """
    records = [r for r in read_manifest(source, kinds=SYNTHETIC) if _score(r, config) is not None]
    rewards = torch.tensor([_score(record, config) for record in records], dtype=torch.float64)
    pairs = pick_pairs(
        rewards,
        [record.prompt_id for record in records],
        min_margin=config.min_margin,
        max_pairs=config.objective.max_pairs,
    )
    if not pairs:
        raise ValueError(
            f"dpo.pairs: the data set {str(source)!r} has no two clips of one prompt whose "
            f"{config.by!r} differs by {config.min_margin:g} or more, of {len(records)} that have "
            "the score. Lower dpo.min_margin, take another dpo.by, or render more clips a prompt"
        )
    texts = [records[pair.chosen].text for pair in pairs]
    return Preferences(
        clips=StoredClips(source, records),
        pairs=tuple((pair.chosen, pair.rejected) for pair in pairs),
        prompts=tuple(Prompt(prompt_id=prompt_id(text), text=text) for text in texts),
    )


def _score(record: ClipRecord, config: OfflineDpoConfig) -> float | None:
    return record.reward if config.by == REWARD else record.scores.get(config.by)
