"""The independent judge of the tiny world: a learned reader of the five caption attributes.

It is for evaluation, so it shares no code with the hand-made critics that the policy is trained on:
a policy that has found their blind spots has not found this one's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlvid.data.tiny_world.grammar import parse
from rlvid.models.tiny import judge_folder
from rlvid.models.tiny.attribute_network import (
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    AttributeNetwork,
)
from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec


class AttributeJudge:
    """Mean probability, over the attributes, that the clip shows the value its prompt asks for.

    In [0, 1]; a clear clip of the right facts scores about 0.95, because the network was trained
    with smoothed labels.

    Sees: object, colour, motion, direction and camera, as true clips show them.
    Blind to: physics beyond the kind of motion, flicker, anything that is no attribute. It was
    never shown a clip without an object and guesses there.
    """

    CLAIMS = ("wrong_colour", "wrong_object", "wrong_direction", "wrong_motion", "wrong_camera")
    """Breakages of the tiny world that it must tell from true clips."""
    BLIND_TO = (
        "physics beyond the kind of motion, flicker, anything that is no attribute",
        "clips without an object, of which it was shown none",
    )

    WORKING_BYTES = 58.0

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        folder: str | None = None
        """Where the weights are; None is the judge that ships with rlvid."""

    def __init__(self, config: Config) -> None:
        folder = judge_folder() if config.folder is None else Path(config.folder)
        self._network = AttributeNetwork.load(folder)
        self.clip_spec = ClipSpec(fps=8, min_frames=NUM_FRAMES, height=HEIGHT, width=WIDTH)

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] and B prompts -> [B] float32 in [0, 1]."""
        parts = self.parts(videos, prompts)
        return torch.stack([parts[name] for name in self._network.attributes]).mean(dim=0)

    @torch.no_grad()
    def parts(self, videos: Tensor, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return the probability [B] of the wanted value, for each attribute."""
        wanted = [self._facts(prompt) for prompt in prompts]
        # One clip at a time: convolution kernels differ with the batch size, and a score must not.
        rows = [self._network(video[None].float().cpu()) for video in videos]
        return {
            name: torch.stack(
                [
                    row[name][0].softmax(dim=0)[values.index(facts[name])]
                    for row, facts in zip(rows, wanted, strict=True)
                ]
            )
            for name, values in self._network.attributes.items()
        }

    def _facts(self, prompt: Prompt) -> Mapping[str, str]:
        """Return what the prompt asks for: its facts, else what its sentence says."""
        facts = prompt.facts or parse(prompt.text)
        for name, values in self._network.attributes.items():
            if facts is None or facts.get(name) not in values:
                raise ValueError(
                    f"attribute judge: prompt {prompt.text!r} is outside the tiny world: expected "
                    f"{name} of {', '.join(values)}. Judge other prompts with another scorer."
                )
        assert facts is not None, "the loop above refuses a prompt without facts"
        return facts
