"""Teaches the shipped video-text network on clips of the tiny world.

    python -m rlvid.reward_models.tiny_video_text FOLDER

writes the weights that ship, in about three minutes of one core, and prints the held-out recall.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlvid.data.tiny_world import all_facts, caption, render_clip, split_of
from rlvid.models.tiny.video_text_training import recall_at_1, train_video_text
from rlvid.seeds import derive_seed

NUM_CLIPS = 4000


def draw_clips(num_clips: int, *, split: str, seed: int) -> tuple[Tensor, list[str]]:
    """Return clips [M, T, 3, H, W] uint8 of random captions of the split, and those captions.

    Seeds are below 100 000 for training and above for held-out clips, as calibration has them.
    """
    facts = [one for one in all_facts() if split_of(one) == split]
    rng = np.random.default_rng(derive_seed(seed, "video_text", split))
    first = 100_000 if split == "heldout" else 0
    clips, texts = [], []
    for _ in range(num_clips):
        chosen = facts[int(rng.integers(len(facts)))]
        clip = render_clip(chosen, first + int(rng.integers(90_000)))
        clips.append((clip * 255.0).round().to(torch.uint8))
        texts.append(caption(chosen))
    return torch.stack(clips), texts


def main() -> None:
    """Train on the train split with seed 0, measure on the held-out one, write the weights."""
    clips, texts = draw_clips(NUM_CLIPS, split="train", seed=0)
    network = train_video_text(clips, texts, seed=0)
    network.save(Path(sys.argv[1]))
    heldout, captions = draw_clips(432, split="heldout", seed=1)
    recall = recall_at_1(network, heldout, captions)
    print(f"held-out recall@1 {recall:.3f} of {len(set(captions))} captions")


if __name__ == "__main__":
    main()
