"""Preference pairs in memory: which two clips, whose prompt, which part went to whom.

Letters: N clips, T frames, H W pixels, P parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlvid.reward_models import PARTS

UNLABELLED = float("nan")


class ClipStore(Protocol):
    """Clips by index, each the same at every call."""

    def __len__(self) -> int: ...

    def clip(self, index: int) -> Tensor:
        """Return [T, 3, H, W] uint8."""
        ...


class ClipTensor:
    """Clips that lie in memory."""

    def __init__(self, clips: Tensor) -> None:
        """`clips` is [N, T, 3, H, W] uint8."""
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def clip(self, index: int) -> Tensor:
        return self.clips[index]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """Two clips that were made for one prompt, and which is preferred in each part."""

    first: int
    """Clip A, an index into the store."""
    second: int
    """Clip B."""
    prompt: str
    labels: tuple[float, ...]
    """[P] +1 where A is preferred, -1 where B is, 0 for a tie, NaN where nobody said."""
    kind: str = ""
    """Where the pair came from, for tables."""

    def swapped(self) -> PreferencePair:
        """Return the same pair with A and B exchanged."""
        return PreferencePair(
            first=self.second,
            second=self.first,
            prompt=self.prompt,
            labels=tuple(-label for label in self.labels),
            kind=self.kind,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSet:
    """Pairs and the clips they are about."""

    clips: ClipStore
    pairs: tuple[PreferencePair, ...]

    def videos(self, indices: Sequence[int]) -> Tensor:
        """Return clips [B, T, 3, H, W] float32 in [0, 1]."""
        return torch.stack([self.clips.clip(index) for index in indices]).float().div_(255.0)

    def prompts(self) -> tuple[str, ...]:
        """Return the distinct prompts, in order of appearance."""
        return tuple(dict.fromkeys(pair.prompt for pair in self.pairs))

    def split(self, heldout_frac: float) -> tuple[PairSet, PairSet]:
        """Return (training, held-out) pairs, whole prompts on one side.

        By a digest of the prompt, so a prompt stays on its side when others are added.

        Raises:
            ValueError: a side would be empty.
        """
        heldout = [is_heldout(pair.prompt, heldout_frac) for pair in self.pairs]
        sides = [
            tuple(p for p, out in zip(self.pairs, heldout, strict=True) if out is side)
            for side in (False, True)
        ]
        if not all(sides):
            raise ValueError(
                f"reward_model.heldout_frac: {heldout_frac} of {len(self.prompts())} prompts "
                f"leaves {len(sides[0])} pairs to train on and {len(sides[1])} held out; give more "
                "prompts, or another share"
            )
        train, out = (PairSet(clips=self.clips, pairs=side) for side in sides)
        return train, out


def is_heldout(prompt: str, frac: float) -> bool:
    """Return whether the pairs of `prompt` are held out."""
    digest = hashlib.blake2b(f"pairs/{prompt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < frac * 2**64


def labels_of(**parts: float) -> tuple[float, ...]:
    """Return labels in the order of PARTS; a part not named is unlabelled."""
    return tuple(parts.get(part, UNLABELLED) for part in PARTS)
