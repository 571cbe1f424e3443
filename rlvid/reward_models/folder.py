"""A trained reward model as files: reward_model.safetensors and config.json.

Of a VLM the folder keeps what was trained (head, reward tokens, adapters or everything) and the
path and digest of the base it belongs to; a base that has changed is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from rlvid.config.reward_model import BackboneConfig, RewardModelConfig
from rlvid.data.clips import ClipShape
from rlvid.models import digest_folder
from rlvid.reward_models import PARTS
from rlvid.reward_models.measure import ZScore
from rlvid.reward_models.network import RewardModel, build_reward_model

WEIGHTS_FILE = "reward_model.safetensors"
CONFIG_FILE = "config.json"
FORMAT = 1
_KEYS = {
    "format", "backbone", "base_digest", "head", "tie_k", "vocabulary", "clip", "z_scores",
    "measured",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRewardModel:
    """A reward model ready to judge, and what its numbers mean."""

    model: RewardModel
    """Frozen, in evaluation mode."""
    config: RewardModelConfig
    """Backbone, head and k are those it was trained with; the rest are defaults."""
    vocabulary: tuple[str, ...]
    clip: ClipShape
    """Of the clips it was trained on; it judges no others."""
    z_scores: Mapping[str, ZScore]
    digest: str
    """Of the folder's files; for a VLM config.json names its base by digest, so of that too."""


def save_reward_model(
    folder: Path,
    model: RewardModel,
    config: RewardModelConfig,
    *,
    clip: ClipShape,
    vocabulary: Sequence[str],
    z_scores: Mapping[str, ZScore],
    measured: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the folder that `load_reward_model` reads.

    Args:
        measured: what `measure.to_json` says of held-out pairs, for the reader.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = model.trained_parameters()
    if config.backbone.use == "video_encoder":
        kept = dict(model.named_parameters())  # what is frozen is random, and kept nowhere else
    save_file(
        {name: p.detach().cpu().contiguous() for name, p in kept.items()}, folder / WEIGHTS_FILE
    )
    tree = {
        "format": FORMAT,
        "backbone": config.backbone.model_dump(mode="json"),
        "base_digest": base_digest(config.backbone),
        "head": config.head,
        "tie_k": config.tie_k,
        "vocabulary": list(vocabulary),
        "clip": asdict(clip),
        "z_scores": {part: asdict(z_scores[part]) for part in PARTS},
        "measured": list(measured),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


def load_reward_model(
    folder: Path, *, where: str, device: torch.device | None = None, is_trained: bool = False
) -> TrainedRewardModel:
    """Read what `save_reward_model` wrote.

    Args:
        where: the recipe path for errors.
        is_trained: leave `requires_grad` as training wants it, to go on.

    Raises:
        ValueError: no such folder, another format, a changed base, or weights that do not fit.
    """
    tree = _read_config(folder, where)
    config = _config_of(tree, f"{where}: {folder / CONFIG_FILE}")
    found = base_digest(config.backbone)
    if found != tree["base_digest"]:
        raise ValueError(
            f"{where}: {str(folder)!r} was trained on a base with digest {tree['base_digest']}, "
            f"{config.backbone.path!r} has {found}; give back the base, or train again"
        )
    clip = ClipShape(**tree["clip"])
    vocabulary = tuple(tree["vocabulary"])
    model = build_reward_model(config, vocabulary=vocabulary, fps=clip.fps, seed=0)
    state = load_file(folder / WEIGHTS_FILE)
    expected = (
        dict(model.named_parameters())
        if config.backbone.use == "video_encoder"
        else model.trained_parameters()
    )
    _check_weights(state, expected, f"{where}: {folder / WEIGHTS_FILE}")
    with torch.no_grad():
        for name, tensor in state.items():
            expected[name].copy_(tensor)
    model = model.to(device or torch.device("cpu"))
    return TrainedRewardModel(
        model=model if is_trained else model.requires_grad_(False).eval(),
        config=config,
        vocabulary=vocabulary,
        clip=clip,
        z_scores={part: ZScore(**tree["z_scores"][part]) for part in PARTS},
        digest=digest_folder(folder),
    )


def base_digest(backbone: BackboneConfig) -> str:
    """Return the digest of a VLM's folder; "" for a backbone that has none."""
    if backbone.use != "vlm":
        return ""
    from rlvid.reward_models.vlm import vlm_folder

    return digest_folder(vlm_folder(backbone.path))


def _read_config(folder: Path, where: str) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise ValueError(
            f"{where}: no reward model at {str(folder)!r}: expected {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}, as the reward_model phase writes them. Give that folder."
        )
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: {path}: not JSON: {error}") from error
    if not isinstance(tree, dict) or tree.get("format") != FORMAT or set(tree) != _KEYS:
        raise ValueError(
            f"{where}: {path}: expected format {FORMAT} with {sorted(_KEYS)}; train it again"
        )
    return tree


def _config_of(tree: Mapping[str, Any], where: str) -> RewardModelConfig:
    chosen = {"backbone": tree["backbone"], "head": tree["head"], "tie_k": tree["tie_k"]}
    try:
        return RewardModelConfig.model_validate_json(json.dumps(chosen))
    except ValidationError as error:
        raise ValueError(f"{where}: {error.errors()[0]['msg']}; train it again") from error


def _check_weights(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], where: str
) -> None:
    wrong = sorted(set(state) ^ set(expected)) or [
        name for name in state if state[name].shape != expected[name].shape
    ]
    if wrong:
        raise ValueError(f"{where}: tensors do not fit the configuration, e.g. {wrong[0]!r}")
