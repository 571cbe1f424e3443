"""Whether a description of the clip is about what the prompt is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from rlvid.data.tiny_world.grammar import caption
from rlvid.models.tiny import judge_folder
from rlvid.models.tiny.attribute_network import HEIGHT, WIDTH, AttributeNetwork
from rlvid.plugins import resolve
from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.specialists.sentences import load_sentence_encoder


class Describer(Protocol):
    """Says in a sentence what a clip shows, without having seen the prompt."""

    clip_spec: ClipSpec

    def describe(self, videos: Tensor) -> list[str]:
        """[B, T, 3, H, W] float32 in [0, 1] -> B sentences."""
        ...


class AttributeDescriber:
    """The caption of the tiny world that the shipped attribute network reads off the clip."""

    clip_spec = ClipSpec(fps=8, min_frames=9, height=HEIGHT, width=WIDTH)

    def __init__(self) -> None:
        self._network = AttributeNetwork.load(judge_folder())

    @torch.no_grad()
    def describe(self, videos: Tensor) -> list[str]:
        """[B, T, 3, H, W] -> B captions, each of the most likely values."""
        captions = []
        for video in videos:
            logits = self._network(video[None].float().cpu())
            facts = {
                name: values[int(logits[name][0].argmax())]
                for name, values in self._network.attributes.items()
            }
            captions.append(caption(facts))
        return captions


DESCRIBERS: dict[str, str] = {
    "attributes": "rlvid.rewards.specialists.text_topic:AttributeDescriber",
}
"""Short names of describers; a vision-language model is named by its package.module:Class."""


class TextTopic:
    """Similarity, by MiniLM, of the prompt and of a description made without seeing the prompt.

    The cosine of two sentences: about 0 for strange topics, 1 for the same words.

    Sees: another kind of thing, a wholly different subject, as far as the describer says so.
    Blind to: which thing has which attribute, colours, numbers, negation; what is not described.
    With the describer that ships it reads the attribute judge: do not train with it on a run that
    is evaluated by `attribute_judge`.
    """

    CLAIMS = ("wrong_topic",)
    BLIND_TO = ("binding of attributes", "numbers", "negation", "what the description leaves out")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        describer: str = "attributes"
        """Short name, or package.module:Class of a `Describer` that is made without arguments."""
        folder: str | None = None
        """Of another sentence encoder; None is the packaged MiniLM."""

    def __init__(self, config: Config) -> None:
        where = "text_topic: config.describer"
        factory = cast(type[Describer], resolve(config.describer, DESCRIBERS, where=where))
        self._encoder = load_sentence_encoder("text_topic", config.folder)
        self._describer = factory()
        self.clip_spec = self._describer.clip_spec

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] and B prompts -> [B] float32."""
        pairs = zip(self._describer.describe(videos), prompts, strict=True)
        return torch.tensor([self._encoder.similarity(text, prompt.text) for text, prompt in pairs])
