"""The HunyuanVideo-1.5 adapter, on a tiny random pipeline of diffusers' own classes."""

from __future__ import annotations

import pytest
import torch

from rlvid.condition import Condition
from rlvid.models.hunyuan_video15 import HunyuanVideo15Model
from rlvid.models.tiny_families.hunyuan_video15 import build_model
from tests.unit.models.family_checks import FAMILIES, noise

FAMILY = FAMILIES["hunyuan_video15"]


@pytest.fixture(scope="module")
def model() -> HunyuanVideo15Model:
    return build_model()


def test_system_message_is_cut_off(model: HunyuanVideo15Model) -> None:
    """Left are the prompt, or a space for none, and five tokens that announce the answer."""
    mask = model.encode_prompts(["a red ball", ""])["prompt_mask"]
    assert mask.sum(dim=1).tolist() == [3 + 5, 1 + 5]
    assert mask[:, 0].tolist() == [1.0, 1.0]


def test_letters_in_quotation_marks_reach_the_transformer(model: HunyuanVideo15Model) -> None:
    """A prompt without them has no glyphs; those of another word are others."""
    condition = model.encode_prompts(
        [FAMILY.caption, FAMILY.caption.replace("go", "do"), "a red box"]
    )
    glyphs, mask = condition["glyph_embeds"], condition["glyph_mask"]
    assert mask.sum(dim=1).tolist() == [len('Text "to go". ') + 1] * 2 + [0]
    assert not torch.allclose(glyphs[0], glyphs[1], atol=1e-3)
    assert torch.equal(glyphs[2], torch.zeros_like(glyphs[2]))
    without = Condition({**condition.tensors, "glyph_mask": torch.zeros_like(mask)})
    latents, sigma = noise(FAMILY, model, rows=3), torch.full((3,), 0.5)
    with torch.no_grad():
        change = model.velocity(latents, sigma, condition) - model.velocity(latents, sigma, without)
    assert change[0].abs().max() > 1e-4
    assert torch.equal(change[2], torch.zeros_like(change[2]))
