"""A small 3D convolutional backbone for clips of the tiny world, of about 0.3 million parameters.

Letters: B clips, T frames, H W pixels, L words, P parts, D features of a part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlvid.reward_models import PARTS

FEATURES = 48
"""D."""
_WORD = re.compile(r"\w+")
_TEXT_DIM = 32
PAD, UNKNOWN = 0, 1
"""Word ids 0 and 1; the vocabulary starts at 2."""


def words_of(text: str) -> list[str]:
    """Return the words of a prompt in lower case."""
    return _WORD.findall(text.lower())


def vocabulary_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the sorted words of the prompts."""
    return tuple(sorted({word for text in texts for word in words_of(text)}))


class VideoEncoder(nn.Module):
    """Features of each part; those of VQ and MQ are computed without the prompt.

    The first layer also sees each frame's difference to the one before, so that what jumps or
    flickers shows at once. The last one is pooled twice: by mean over fifths of the clip, since
    the order of events matters, and by maximum over all places, since one bad moment spoils a clip.
    """

    def __init__(self, vocabulary: Sequence[str], width: int) -> None:
        super().__init__()
        self.vocabulary = tuple(vocabulary)
        self._word_ids = {word: index + 2 for index, word in enumerate(self.vocabulary)}
        self.features = nn.Sequential(
            nn.Conv3d(6, width, (1, 5, 5), stride=(1, 2, 2), padding=(0, 2, 2)),
            nn.GroupNorm(4, width),
            nn.GELU(),
            nn.Conv3d(width, 2 * width, 3, stride=(1, 2, 2), padding=1),
            nn.GroupNorm(4, 2 * width),
            nn.GELU(),
            nn.Conv3d(2 * width, 3 * width, 3, stride=(2, 2, 2), padding=1),
            nn.GroupNorm(4, 3 * width),
            nn.GELU(),
            nn.Conv3d(3 * width, 3 * width, 3, padding=1),
            nn.GroupNorm(4, 3 * width),
            nn.GELU(),
        )
        pooled = 3 * width * (5 * 4 + 1)
        self.read_out = nn.ModuleDict(
            {part: nn.Sequential(nn.Linear(pooled, FEATURES), nn.GELU()) for part in PARTS}
        )
        self.words = nn.Embedding(len(self.vocabulary) + 2, _TEXT_DIM, padding_idx=PAD)
        self.phrases = nn.Conv1d(_TEXT_DIM, FEATURES, 3, padding=1)
        self.fuse = nn.Sequential(nn.Linear(3 * FEATURES, FEATURES), nn.GELU())

    @property
    def feature_size(self) -> int:
        return FEATURES

    def forward(self, videos: Tensor, texts: Sequence[str]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] and B prompts -> [B, P, D]."""
        pooled = self._pooled(videos)
        seen = {part: layer(pooled) for part, layer in self.read_out.items()}
        text = self._text(texts)
        aligned = self.fuse(torch.cat([seen["TA"], text, seen["TA"] * text], dim=1))
        return torch.stack([seen["VQ"], seen["MQ"], aligned], dim=1)

    def _pooled(self, videos: Tensor) -> Tensor:
        before = torch.cat([videos[:, :1], videos[:, :-1]], dim=1)
        # Differences are a tenth of the pixels' size; scaled, both train at one rate.
        clips = torch.cat([videos * 2.0 - 1.0, (videos - before) * 4.0], dim=2)
        features = self.features(clips.transpose(1, 2))
        mean = functional.adaptive_avg_pool3d(features, (5, 2, 2)).flatten(1)
        return torch.cat([mean, features.amax(dim=(2, 3, 4))], dim=1)

    def _text(self, texts: Sequence[str]) -> Tensor:
        """[B, D]: the strongest answer of each phrase detector; order within phrases counts."""
        rows = [[self._word_ids.get(word, UNKNOWN) for word in words_of(text)] for text in texts]
        # A constant width and masked padding: a prompt's features depend on no other prompt.
        length = max(1, *(len(row) for row in rows)) if rows else 1
        ids = torch.full((len(rows), length), PAD, device=self.words.weight.device)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        phrases = functional.gelu(self.phrases(self.words(ids).transpose(1, 2)))
        lowest = torch.finfo(phrases.dtype).min
        present = (ids != PAD).any(dim=1)[:, None]
        strongest = phrases.masked_fill((ids == PAD)[:, None], lowest).amax(dim=2)
        return torch.where(present, strongest, torch.zeros_like(strongest))
