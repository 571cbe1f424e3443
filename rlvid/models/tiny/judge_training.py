"""Trains the attribute network of the independent judge on true clips.

The caller renders the clips, of the train split only, and may add clips that went through the VAE.
Letters: N clips, B batch, T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rlvid.models.tiny.attribute_network import AttributeNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeTraining:
    """How the judge is trained; the defaults made the shipped one."""

    num_steps: int = 1200
    batch_size: int = 32
    learning_rate: float = 2e-3
    """Peak; warmed up over 50 steps, cosine down to 0."""
    weight_decay: float = 0.01
    label_smoothing: float = 0.05
    """Keeps the probabilities of clear clips below 1, so that clearer ones still score higher."""


def train_judge(
    clips: Tensor,
    facts: Sequence[Mapping[str, str]],
    attributes: Mapping[str, tuple[str, ...]],
    *,
    training: JudgeTraining | None = None,
    seed: int = 0,
    on_step: Callable[[int, float], None] | None = None,
) -> AttributeNetwork:
    """Return a network trained to read `facts` off `clips`.

    Args:
        clips: [N, T, 3, H, W] uint8.
        facts: of each clip.
        on_step: told the step and its loss.
    """
    training = training or JudgeTraining()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AttributeNetwork(attributes)
        targets = targets_of(facts, attributes)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        network.train()
        for step in range(training.num_steps):
            factor = 0.5 + 0.5 * math.cos(math.pi * step / training.num_steps)
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * min(factor, (step + 1) / 50)
            rows = torch.randint(len(clips), (training.batch_size,), generator=generator)
            logits = network(augment(clips[rows].float() / 255.0, generator))
            loss = torch.stack(
                [
                    functional.cross_entropy(
                        logits[name], target[rows], label_smoothing=training.label_smoothing
                    )
                    for name, target in targets.items()
                ]
            ).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if on_step is not None:
                on_step(step, loss.item())
    return network.requires_grad_(False).eval()


def targets_of(
    facts: Sequence[Mapping[str, str]], attributes: Mapping[str, tuple[str, ...]]
) -> dict[str, Tensor]:
    """Return the index [N] of every attribute's value."""
    return {
        name: torch.tensor([values.index(fact[name]) for fact in facts])
        for name, values in attributes.items()
    }


def augment(videos: Tensor, generator: torch.Generator) -> Tensor:
    """Return clips as a generator might blur them; labels stay true.

    Each clip draws its own brightness, contrast, blur and noise. No flips and no changes of hue:
    those would change the facts.

    Args:
        videos: [B, T, 3, H, W] float32 in [0, 1].
    """

    def draw(low: float, high: float) -> Tensor:
        uniform = torch.rand(len(videos), 1, 1, 1, 1, generator=generator)
        return low + (high - low) * uniform

    mean = videos.mean(dim=(1, 2, 3, 4), keepdim=True)
    videos = (videos - mean) * draw(0.85, 1.15) + mean + draw(-0.06, 0.06)
    blurred = functional.avg_pool3d(
        videos.transpose(1, 2), (1, 3, 3), stride=1, padding=(0, 1, 1), count_include_pad=False
    ).transpose(1, 2)
    videos = torch.lerp(videos, blurred, draw(0.0, 1.0))
    noise = torch.randn(videos.shape, generator=generator)
    return (videos + noise * draw(0.0, 0.08)).clamp(0.0, 1.0)


@torch.no_grad()
def accuracy(
    network: AttributeNetwork, clips: Tensor, facts: Sequence[Mapping[str, str]]
) -> dict[str, float]:
    """Return the share of clips whose most likely value is the true one, for each attribute."""
    hits: dict[str, list[Tensor]] = {name: [] for name in network.attributes}
    targets = targets_of(facts, network.attributes)
    for start in range(0, len(clips), 64):
        rows = slice(start, start + 64)
        for name, logits in network(clips[rows].float() / 255.0).items():
            hits[name].append(logits.argmax(dim=1) == targets[name][rows])
    return {name: float(torch.cat(hit).float().mean()) for name, hit in hits.items()}
