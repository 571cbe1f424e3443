"""HPSv3 (arXiv:2508.03789): human preference of pictures, on the frames of a clip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, Serving
from rlvid.rewards.specialists.needs import fingerprint, need_file, need_folder
from rlvid.rewards.specialists.qwen_reward import open_qwen_reward, read_question

TOKEN = "<|Reward|>"
SOURCE = "hpsv3/dataset/data_collator_qwen.py of MizzenAI/HPSv3 (INSTRUCTION, then the end)"
PIXELS = 256 * 28 * 28
"""Of every frame, as the public configuration sets both bounds."""
BEST_SHARE = 0.3
"""Of the frames, whose mean counts."""


class HpsV3:
    """Mean preference mu of the best 30 % of the frames, by HPSv3's (mu, sigma) head.

    Wants a folder with `HPSv3.safetensors`, `prompt.txt` (the public question, with {prompt} and
    <|Reward|>) and the config, tokenizer and processor of Qwen2-VL-7B-Instruct, the latter in
    `base_folder` when they lie elsewhere. Licence: that of the weights you bring.

    Sees: looks and subject of single frames.
    Blind to: time; it does not even know that frames belong together. Unbounded: give it a running
    normalisation. Gamed by: cheerful, cluttered pictures (above 15), whatever the prompt says.
    """

    BLIND_TO = ("time", "the prompt, when it is asked in general terms")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        folder: str = ""
        base_folder: str = ""
        """Of the base model; "" is `folder`."""
        num_frames: int = 8
        """Frames judged, evenly over the clip."""
        bfloat16: bool = False
        """Backbone in bfloat16, as published, for a GPU."""

    def __init__(self, config: Config) -> None:
        from safetensors.torch import load_file

        folder = need_folder(config.folder, "hpsv3", holds="the weights of HPSv3")
        file = need_file(folder, "HPSv3.safetensors", scorer="hpsv3", what="the weights of HPSv3")
        self._question = read_question(folder, [TOKEN], scorer="hpsv3", source=SOURCE)
        self._config = config
        self._model = open_qwen_reward(
            Path(config.base_folder) if config.base_folder else folder,
            load_file(file),
            tokens=[TOKEN],
            scorer="hpsv3",
            dtype=torch.bfloat16 if config.bfloat16 else torch.float32,
        )
        self.clip_spec = ClipSpec()
        self.serving = Serving(batch_size=1)
        self.version = fingerprint(file, folder / "prompt.txt")

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] and B prompts -> [B] float32."""
        pairs = zip(videos, prompts, strict=True)
        return torch.tensor([self.parts(video, prompt)["mu"] for video, prompt in pairs])

    def parts(self, video: Tensor, prompt: Prompt) -> Mapping[str, float]:
        """Return "mu" and "sigma", the means over the best frames of [T, 3, H, W]."""
        count = min(self._config.num_frames, len(video))
        chosen = [int((n + 0.5) * len(video) / count) for n in range(count)]
        question = self._question.replace("{prompt}", prompt.text)
        rows = torch.stack(
            [
                self._model.read(video[[n]], question, as_video=False, max_pixels=PIXELS)[0].cpu()
                for n in chosen
            ]
        )
        best = rows[:, 0].topk(math.ceil(BEST_SHARE * count)).indices
        mu, sigma = rows[best].mean(dim=0)[:2].tolist()
        return {"mu": mu, "sigma": sigma}
