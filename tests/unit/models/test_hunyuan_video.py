"""The HunyuanVideo adapter, on a tiny random pipeline of diffusers' own classes."""

from __future__ import annotations

import pytest
import torch

from rlvid.models.hunyuan_video import HunyuanVideoModel
from rlvid.models.tiny_families.hunyuan_video import build_model
from tests.unit.models.family_checks import FAMILIES, batch

FAMILY = FAMILIES["hunyuan_video"]


@pytest.fixture(scope="module")
def model() -> HunyuanVideoModel:
    return build_model()


def test_embedded_guidance_reaches_the_transformer(
    model: HunyuanVideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A distilled model that is told scale 1 makes the clips of a model without guidance."""
    with torch.no_grad():
        before = model.velocity(*batch(FAMILY, model))
        monkeypatch.setattr(HunyuanVideoModel, "EMBEDDED_GUIDANCE", 1.0)
        assert not torch.allclose(model.velocity(*batch(FAMILY, model)), before, atol=1e-4)


def test_beginning_of_the_template_is_cut_off(model: HunyuanVideoModel) -> None:
    """What is left is the prompt and the mark behind it; the rest is padding, and masked."""
    num_words = len(FAMILY.caption.split())
    mask = model.encode_prompts([FAMILY.caption, ""])["prompt_mask"]
    assert mask.sum(dim=1).tolist() == [num_words + 1, 1]
    assert mask[:, 0].tolist() == [1.0, 1.0]


def test_both_encoders_read_the_prompt(model: HunyuanVideoModel) -> None:
    one, other = FAMILY.caption, FAMILY.caption.replace("red", "blue")
    condition = model.encode_prompts([one, other])
    for name in ("prompt_embeds", "pooled_embeds"):
        assert not torch.allclose(condition[name][0], condition[name][1], atol=1e-3)
