"""Latents of a clip set, and its frames as image-to-video sees them, encoded once and kept.

Each rank encodes its share into a file of its own; all ranks read all files, row by row from the
disk, so a batch does not depend on how many ranks there are.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvid.condition import Condition, concatenate
from rlvid.config import ModelConfig, SftConfig
from rlvid.data.clips import ClipSet, clip_shape, open_clips
from rlvid.learners.own_frames import needed_frames, own_frames
from rlvid.learners.ranks import Ranks
from rlvid.models.base import VideoModel

logger = logging.getLogger(__name__)

ENCODE_BATCH = 16
"""Clips per forward of the VAE."""
FRAMES = "frames."
"""Begins the names of what the model is told of a clip's own frames."""


class LatentSet:
    """Latents [C, F, H, W], captions and conditions of clips by index."""

    def __init__(self, files: Sequence[Path]) -> None:
        """`files` of rank 0, 1, ...: clip i is row i // len(files) of file i mod len(files)."""
        from safetensors import safe_open

        self._files: list[Any] = [safe_open(str(path), framework="pt") for path in files]
        self._rows = [file.get_slice("latents") for file in self._files]
        self._texts = [json.loads(file.metadata()["texts"]) for file in self._files]
        self._frames = [
            {
                name.removeprefix(FRAMES): file.get_slice(name)
                for name in file.keys()  # noqa: SIM118, no mapping
                if name.startswith(FRAMES)
            }
            for file in self._files
        ]

    def __len__(self) -> int:
        return sum(len(texts) for texts in self._texts)

    def latents(self, index: int) -> Tensor:
        place, file = divmod(index, len(self._files))
        row: Tensor = self._rows[file][place]
        return row

    def text(self, index: int) -> str:
        place, file = divmod(index, len(self._files))
        return str(self._texts[file][place])

    def frames(self, index: int) -> Condition | None:
        """Return what the model is told of the clip's own frames, one row; None where nothing."""
        place, file = divmod(index, len(self._files))
        rows = self._frames[file]
        if not rows:
            return None
        return Condition({name: tensor[place : place + 1] for name, tensor in rows.items()})


def clips_of(config: SftConfig, model_config: ModelConfig, *, where: str) -> ClipSet:
    """Return the clips that the section names, which are no data set.

    Args:
        where: the recipe path that names them, for errors.
    """
    return open_clips(
        config.clips,
        clip_shape(model_config),
        num_clips=config.num_clips,
        clip_seed=config.clip_seed,
        where=where,
    )


def open_latents(
    folder: Path,
    clips: ClipSet,
    source: Mapping[str, Any],
    model_config: ModelConfig,
    model: VideoModel,
    ranks: Ranks,
    *,
    where: str,
    keeps_frames: bool = True,
) -> LatentSet:
    """Return the latents of the clips; encode what is not there. A collective.

    Args:
        source: what the clips are, in JSON; latents of another source are encoded again.
        where: the recipe path that names them, for errors; its section has the ranks.
        keeps_frames: keep the clips' own frames for a model that needs some; False where its
            prompts bring them.

    Raises:
        ValueError: fewer clips than ranks.
    """
    settings = {
        **source,
        "model": model_config.path,
        "shape": [model_config.num_frames, model_config.height, model_config.width],
        "fps": model_config.fps,
    }
    if keeps_frames and (frames := needed_frames(model)):
        settings["frames"] = list(frames)
    paths = [
        folder / f"latents-{rank:04d}-of-{ranks.world_size:04d}.safetensors"
        for rank in range(ranks.world_size)
    ]
    if len(clips) < ranks.world_size:
        section = where.partition(".")[0]
        raise ValueError(
            f"{where}: {settings} has {len(clips)} clips for {ranks.world_size} ranks: expected "
            f"at least one each. Give more clips or lower {section}.learner.num_ranks"
        )
    if not _is_encoded(paths[ranks.rank], settings):
        _encode(paths[ranks.rank], settings, clips, model, ranks)
    ranks.barrier()
    return LatentSet(paths)


def _is_encoded(path: Path, settings: Mapping[str, Any]) -> bool:
    from safetensors import safe_open

    if not path.is_file():
        return False
    with safe_open(str(path), framework="pt") as file:
        return bool(json.loads(file.metadata()["settings"]) == dict(settings))


def _encode(
    path: Path, settings: Mapping[str, Any], clips: ClipSet, model: VideoModel, ranks: Ranks
) -> None:
    """Encode this rank's share and write it under a temporary name first."""
    from safetensors.torch import save_file

    mine = range(ranks.rank, len(clips), ranks.world_size)
    latents: list[Tensor] = []
    frames: list[Condition] = []
    texts: list[str] = []
    for start in range(0, len(mine), ENCODE_BATCH):
        part = [clips.clip(index) for index in mine[start : start + ENCODE_BATCH]]
        videos = torch.stack([video for video, _ in part])
        latents.append(model.encode(videos).cpu())
        if "frames" in settings and (told := own_frames(model, videos)) is not None:
            frames.append(told.to(torch.device("cpu")))
        texts += [text for _, text in part]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".writing")
    metadata = {"settings": json.dumps(dict(settings)), "texts": json.dumps(texts)}
    tensors = {"latents": torch.cat(latents).contiguous()}
    if frames:
        found = concatenate(frames).tensors
        tensors |= {FRAMES + name: tensor.contiguous() for name, tensor in found.items()}
    save_file(tensors, temporary, metadata=metadata)
    temporary.replace(path)
    logger.info("encoded clips count=%d path=%s", len(texts), path)
