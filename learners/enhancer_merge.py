"""From what a run trained to an ordinary language model: full weights as they are, LoRA merged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlvid.config import LearnerConfig
from rlvid.config.enhancement import RewriterConfig
from rlvid.enhancement.language_model import LanguageModel, open_language_model

_A, _B = ".lora_A.weight", ".lora_B.weight"


def merged_language_model(
    start: RewriterConfig, tensors: Mapping[str, Tensor], learner: LearnerConfig
) -> LanguageModel:
    """Return the model that training started from with the trained values, on the CPU.

    Built anew, since a wrapped model is nothing that `save_pretrained` could write. Each matrix is
    added in float32 and rounded once, to the dtype it has.

    Args:
        tensors: canonical name to what was trained; of a LoRA its A [r, in] and B [out, r].
    """
    language = open_language_model(start)
    live = dict(language.model.named_parameters())
    with torch.no_grad():
        if learner.mode == "full":
            for name, tensor in tensors.items():
                live[name].copy_(tensor)
            return language
        scale = learner.lora.alpha / learner.lora.rank
        for name, a in tensors.items():
            if not name.endswith(_A):
                continue
            layer = name.removesuffix(_A)
            delta = scale * (tensors[layer + _B].float() @ a.float())
            parameter = live[f"{layer}.weight"]
            parameter.copy_(parameter.float() + delta)
    return language
