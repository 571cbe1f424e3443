"""Trains the video-text network by contrast: each clip with its caption against all the others.

The loss is the sum of two: the softmax over all captions of the train split (CLIP,
arXiv:2103.00020), which makes the right caption the nearest, and the sigmoid over every pair
(SigLIP, arXiv:2303.15343), which makes the logit of one pair mean the same for every prompt.
`rlvid.reward_models.tiny_video_text` draws the clips.
Letters: M clips, B batch, N captions, T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rlvid.models.tiny.judge_training import augment
from rlvid.models.tiny.video_text_network import VideoTextNetwork, words_of


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoTextTraining:
    """How it is trained; the defaults made the shipped one in three minutes of one core."""

    num_steps: int = 2400
    batch_size: int = 32
    learning_rate: float = 2e-3
    """Peak; warmed up over 100 steps, cosine down to 0."""
    weight_decay: float = 0.02
    sigmoid_weight: float = 1.0
    """Of the sigmoid loss beside the softmax."""


def train_video_text(
    clips: Tensor,
    texts: Sequence[str],
    *,
    training: VideoTextTraining | None = None,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> VideoTextNetwork:
    """Return a network in which each clip is near its caption and far from the others.

    Args:
        clips: [M, T, 3, H, W] uint8.
        texts: the caption of each clip; the distinct ones are the negatives of all.
        on_step: told the step and its loss.
    """
    training = training or VideoTextTraining()
    captions = sorted(set(texts))
    target = torch.tensor([captions.index(text) for text in texts])
    vocabulary = sorted({word for text in captions for word in words_of(text)})
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = VideoTextNetwork(vocabulary)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        network.train()
        for step in range(training.num_steps):
            factor = 0.5 + 0.5 * math.cos(math.pi * step / training.num_steps)
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * min(factor, (step + 1) / 100)
            rows = torch.randint(len(clips), (training.batch_size,), generator=generator)
            videos = network.embed_videos(augment(clips[rows].float() / 255.0, generator))
            logits = network.logits(videos, network.embed_texts(captions))
            loss = contrastive_loss(logits, target[rows], training.sigmoid_weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if on_step is not None:
                on_step(step, loss.item())
    return network.requires_grad_(False).eval()


def contrastive_loss(logits: Tensor, target: Tensor, sigmoid_weight: float) -> Tensor:
    """[B, N] logits and the index [B] of each clip's caption -> the mean loss over clips.

        L = -log softmax(logits)[target] + w * sum_n -log sigmoid(z_n logits_n)

    with z = 1 for the right caption and -1 for the others; the sum over N is SigLIP's, so that the
    one positive is not drowned once its negatives are easy.
    """
    softmax = functional.cross_entropy(logits, target)
    sign = 2.0 * functional.one_hot(target, logits.shape[1]) - 1.0
    pairs = -functional.logsigmoid(sign * logits).sum(dim=1).mean()
    return softmax + sigmoid_weight * pairs


@torch.no_grad()
def recall_at_1(network: VideoTextNetwork, clips: Tensor, texts: Sequence[str]) -> float:
    """Return the share of clips nearer to their own caption than to every other of `texts`.

    Chance is 1 / number of distinct texts.
    """
    captions = sorted(set(texts))
    embedded = network.embed_texts(captions)
    hits = 0
    for start in range(0, len(clips), 64):
        videos = network.embed_videos(clips[start : start + 64].float() / 255.0)
        nearest = (videos @ embedded.T).argmax(dim=1).tolist()
        wanted = texts[start : start + 64]
        hits += sum(captions[n] == text for n, text in zip(nearest, wanted, strict=True))
    return hits / len(clips)
