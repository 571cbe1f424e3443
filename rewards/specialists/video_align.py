"""VideoReward of VideoAlign (arXiv:2501.13918): visual quality, motion quality, text alignment."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, Serving
from rlvid.rewards.specialists.needs import (
    MissingPartError,
    fingerprint,
    need_file,
    need_folder,
)
from rlvid.rewards.specialists.qwen_reward import open_qwen_reward, read_question

DIMENSIONS = ("VQ", "MQ", "TA")
TOKENS = tuple(f"<|{name}_reward|>" for name in DIMENSIONS)
SOURCE = "prompt_template.py of KwaiVGI/VideoAlign (DETAILED_PROMPT_WITH_SPECIAL_TOKEN)"
MAX_PIXELS = 448 * 448
FPS = 2.0


class VideoAlign:
    """Sum of the z-scored visual quality, motion quality and text alignment by VideoAlign.

    Wants the public folder: `model_config.json` and `checkpoint-N/` with `model.pth`, or with
    `adapter_model.safetensors` and `non_lora_state_dict.pth`; beside them `prompt.txt` (the public
    question, with {prompt} and the three special tokens) and the config, tokenizer and processor of
    Qwen2-VL-2B-Instruct, in `base_folder` when they lie elsewhere. Licence: that of your weights.

    Sees: what its raters saw: looks, motion and agreement with the prompt, at 2 frames a second.
    Blind to: what happens between two frames half a second apart. Punishes still video in MQ.
    """

    BLIND_TO = ("motion faster than two frames a second show",)

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        folder: str = ""
        base_folder: str = ""
        """Of the base model; "" is `folder`."""
        clip_fps: int = 16
        """Of the clips it will get."""
        dimensions: tuple[str, ...] = DIMENSIONS
        """Those that are summed."""
        bfloat16: bool = False
        """Backbone in bfloat16, as published, for a GPU."""

    def __init__(self, config: Config) -> None:
        folder = need_folder(config.folder, "video_align", holds="a VideoAlign checkpoint")
        unknown = [name for name in config.dimensions if name not in DIMENSIONS]
        if unknown or not config.dimensions:
            raise ValueError(
                f"video_align: dimensions must be of {', '.join(DIMENSIONS)}, got "
                f"{config.dimensions}"
            )
        file = need_file(folder, "model_config.json", scorer="video_align", what="its settings")
        settings = json.loads(file.read_text())
        self._question = read_question(folder, TOKENS, scorer="video_align", source=SOURCE)
        self._norms = settings.get("inference_config")
        data = settings.get("data_config", {})
        self._max_pixels = int(data.get("max_frame_pixels") or MAX_PIXELS)
        self._fps = float(data.get("fps") or FPS)
        self._config = config
        self._model = open_qwen_reward(
            Path(config.base_folder) if config.base_folder else folder,
            _read_checkpoint(folder),
            tokens=TOKENS,
            scorer="video_align",
            lora_scale=_lora_scale(settings.get("peft_lora_config")),
            dtype=torch.bfloat16 if config.bfloat16 else torch.float32,
        )
        self.clip_spec = ClipSpec(fps=config.clip_fps, min_frames=2)
        self.serving = Serving(batch_size=1)
        self.version = fingerprint(file, folder / "prompt.txt", *_checkpoint_files(folder))

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] and B prompts -> [B] float32."""
        wanted = self._config.dimensions
        pairs = zip(videos, prompts, strict=True)
        parts = [self.parts(video, prompt) for video, prompt in pairs]
        return torch.tensor([sum(one[name] for name in wanted) for one in parts])

    def parts(self, video: Tensor, prompt: Prompt) -> Mapping[str, float]:
        """Return the z-scored "VQ", "MQ" and "TA" of [T, 3, H, W].

        Without `inference_config` in model_config.json they are raw, as in the public code.
        """
        chosen = sampled_frames(len(video), clip_fps=self._config.clip_fps, fps=self._fps)
        question = self._question.replace("{prompt}", prompt.text)
        rows = self._model.read(video[chosen], question, as_video=True, max_pixels=self._max_pixels)
        raw = dict(zip(DIMENSIONS, rows[:, 0].tolist(), strict=True))
        if self._norms is None:
            return raw
        norms = self._norms
        return {k: (v - norms[f"{k}_mean"]) / norms[f"{k}_std"] for k, v in raw.items()}


def sampled_frames(num_frames: int, *, clip_fps: float, fps: float) -> list[int]:
    """Return the indices of about `fps` frames a second, evenly from first to last.

    An even number, 4 at least where there are so many: Qwen2-VL joins frames in pairs.
    """
    count = max(4, 2 * round(num_frames / clip_fps * fps / 2))
    count = min(count, num_frames - num_frames % 2)
    return [round(n * (num_frames - 1) / (count - 1)) for n in range(count)]


def _lora_scale(settings: Mapping[str, Any] | None) -> float | None:
    if not settings or not settings.get("lora_enable"):
        return None
    rank = float(settings["lora_r"])
    return float(settings["lora_alpha"]) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _checkpoint_files(folder: Path) -> list[Path]:
    """Return the files of the latest `checkpoint-N`, or of `folder` itself."""
    numbered = [p for p in folder.glob("checkpoint-*") if p.name.split("-")[-1].isdigit()]
    place = max(numbered, key=lambda path: int(path.name.split("-")[-1]), default=folder)
    full = place / "model.pth"
    if full.is_file():
        return [full]
    pair = [place / "non_lora_state_dict.pth", place / "adapter_model.safetensors"]
    if not all(file.is_file() for file in pair):
        raise MissingPartError(
            f"video_align: {place} has neither model.pth nor both of {pair[1].name} and "
            f"{pair[0].name}: expected a checkpoint of VideoAlign. Complete the folder."
        )
    return pair


def _read_checkpoint(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for file in _checkpoint_files(folder):
        if file.suffix == ".safetensors":
            weights.update(load_file(file))
        else:
            weights.update(torch.load(file, map_location="cpu", weights_only=True))
    return weights
