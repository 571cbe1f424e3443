"""The HunyuanVideo-1.5 image-to-video adapter, on a tiny random pipeline of diffusers' classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlvid.models.hunyuan_video15_i2v import IMAGE_LATENTS, HunyuanVideo15ImageModel
from rlvid.models.tiny_families.hunyuan_video15 import build_image_model, build_image_pipeline
from tests.unit.models.family_checks import CPU, FAMILIES, frames

FAMILY = FAMILIES["hunyuan_video15_i2v"]


def test_first_latent_frame_alone_is_given() -> None:
    model = build_image_model()
    pictures = frames(FAMILY, model)
    given = model.encode_media(pictures, FAMILY.clip[0])[IMAGE_LATENTS]
    assert given[:, -1, 0].unique().tolist() == [1.0]
    assert given[:, -1, 1:].unique().tolist() == [0.0]
    torch.testing.assert_close(given[:, :-1, :1], model.encode(pictures["first_frame"][:, None]))


def test_model_distilled_to_few_steps_is_refused() -> None:
    pipeline: Any = build_image_pipeline()
    pipeline.transformer.register_to_config(use_meanflow=True)
    with pytest.raises(ValueError, match="use_meanflow"):
        HunyuanVideo15ImageModel(pipeline, device=CPU)
