"""Two small towers that put a clip and a sentence of the tiny world into one space.

Trained by `video_text_training`; it shares no weights with the attribute network,
so that one may train a policy while the other judges it. Letters: B clips, N sentences, T frames,
H W pixels, L words, D the shared width.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS_FILE = "video_text.safetensors"
NUM_FRAMES, HEIGHT, WIDTH = 17, 32, 32
"""The clips it was trained on; others are resampled to this size."""
PADDING, UNKNOWN = 0, 1
"""Word numbers; the vocabulary starts at 2."""


def words_of(text: str) -> list[str]:
    """Return the lower-case words of a sentence, without punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower())


class VideoTextNetwork(nn.Module):
    """Cosine similarity of clips and sentences, and what turns it into a logit.

    The text tower sees three neighbouring words at a time, which is what "pans left" and "to the
    left" need; the video tower pools over space but keeps five steps of time, which is what tells
    a movement from its reverse.
    """

    def __init__(self, vocabulary: Sequence[str], *, width: int = 12, embed_dim: int = 64) -> None:
        super().__init__()
        self.vocabulary = tuple(vocabulary)
        self.width, self.embed_dim = width, embed_dim
        self._number = {word: index + 2 for index, word in enumerate(self.vocabulary)}
        channels = (3, width, 2 * width, 3 * width, 3 * width)
        self.video_features = nn.Sequential(
            _convolution(channels[0], channels[1], (1, 5, 5), (1, 2, 2)),
            _convolution(channels[1], channels[2], (3, 3, 3), (2, 2, 2)),
            _convolution(channels[2], channels[3], (3, 3, 3), (2, 1, 1)),
            _convolution(channels[3], channels[4], (3, 3, 3), (1, 2, 2)),
        )
        self.video_head = nn.Sequential(
            nn.Linear(channels[4] * 5 * 3 * 3, 96), nn.GELU(), nn.Linear(96, embed_dim)
        )
        self.word_embedding = nn.Embedding(len(self.vocabulary) + 2, 64, padding_idx=PADDING)
        self.word_context = nn.Conv1d(64, 96, 3, padding=1)
        self.text_head = nn.Sequential(nn.Linear(96, 96), nn.GELU(), nn.Linear(96, embed_dim))
        self.log_scale = nn.Parameter(torch.tensor(2.3))
        """Logit = exp(log_scale) * cosine + bias, as SigLIP (arXiv:2303.15343) starts it."""
        self.bias = nn.Parameter(torch.tensor(-5.0))

    def embed_videos(self, videos: Tensor) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] -> [B, D] of length 1."""
        clips = videos.permute(0, 2, 1, 3, 4) * 2.0 - 1.0
        if clips.shape[2:] != (NUM_FRAMES, HEIGHT, WIDTH):
            size = (NUM_FRAMES, HEIGHT, WIDTH)
            clips = functional.interpolate(clips, size, mode="trilinear", align_corners=True)
        pooled = functional.adaptive_avg_pool3d(self.video_features(clips), (5, 3, 3))
        return functional.normalize(self.video_head(pooled.flatten(1)), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """N sentences -> [N, D] of length 1."""
        rows = [self.word_numbers(text) for text in texts]
        longest = max(len(row) for row in rows)
        numbers = torch.tensor([row + [PADDING] * (longest - len(row)) for row in rows])
        numbers = numbers.to(self.bias.device)
        context = self.word_context(self.word_embedding(numbers).transpose(1, 2))
        is_word = (numbers != PADDING)[:, None, :]
        context = functional.gelu(context) * is_word
        pooled = context.sum(dim=2) / is_word.sum(dim=2).clamp(min=1)
        return functional.normalize(self.text_head(pooled), dim=-1)

    def word_numbers(self, text: str) -> list[int]:
        """Return the number of each word; a word outside the vocabulary is `UNKNOWN`."""
        return [self._number.get(word, UNKNOWN) for word in words_of(text)] or [UNKNOWN]

    def logits(self, videos: Tensor, texts: Tensor) -> Tensor:
        """[B, D] and [N, D] -> [B, N], the log-odds that clip and sentence belong together."""
        return self.log_scale.exp() * videos @ texts.T + self.bias

    def save(self, folder: Path) -> None:
        """Write weights, vocabulary and sizes as one safetensors file."""
        folder.mkdir(parents=True, exist_ok=True)
        about = {"vocabulary": self.vocabulary, "width": self.width, "embed_dim": self.embed_dim}
        save_file(
            {name: value.contiguous() for name, value in self.state_dict().items()},
            folder / WEIGHTS_FILE,
            metadata={"network": json.dumps(about)},
        )

    @classmethod
    def load(cls, folder: Path) -> VideoTextNetwork:
        """Read what `save` wrote, in evaluation mode."""
        file = folder / WEIGHTS_FILE
        if not file.is_file():
            raise ValueError(
                f"video_text: no weights at {file}: expected what "
                "rlvid.reward_models.tiny_video_text writes. Train it, or reinstall rlvid."
            )
        with safe_open(file, framework="pt") as weights:
            about = json.loads(weights.metadata()["network"])
            state = {name: weights.get_tensor(name) for name in list(weights.keys())}
        network = cls(about["vocabulary"], width=about["width"], embed_dim=about["embed_dim"])
        network.load_state_dict(state)
        return network.requires_grad_(False).eval()


def _convolution(
    inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> nn.Sequential:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=padding),
        nn.GroupNorm(4, outputs),
        nn.GELU(),
    )
