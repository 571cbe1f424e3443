"""The Wan image-to-video adapter, on tiny random pipelines of diffusers' own classes."""

from __future__ import annotations

import pytest
import torch

from rlvid.models.tiny_families.wan import build_i2v, build_ti2v
from rlvid.models.wan_i2v import IMAGE_EMBEDS, IMAGE_LATENTS, WanImageToVideoModel
from tests.unit.models.family_checks import CPU, FOLDERS, build, frames


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("wan_i2v", ["first_frame"]),
        ("wan_flf2v", ["first_frame", "last_frame"]),
        ("wan_i2v_without_clip", ["first_frame"]),
    ],
)
def test_frames_it_needs_follow_from_the_transformer(name: str, needed: list[str]) -> None:
    assert sorted(build(FOLDERS[name]).required_media) == needed


@pytest.mark.parametrize("name", ["wan_i2v", "wan_flf2v", "wan_i2v_without_clip"])
def test_condition_says_which_frames_are_given(name: str) -> None:
    family, model = FOLDERS[name], build(FOLDERS[name])
    condition = model.encode_media(frames(family, model), family.clip[0])
    given = condition[IMAGE_LATENTS][0, :4, :, 0, 0]
    ends_given = float("last_frame" in model.media)
    assert given[:, 0].tolist() == [1.0] * 4
    assert given[:, 1:].tolist() == [[0.0, 0.0]] * 3 + [[0.0, ends_given]]
    assert (IMAGE_EMBEDS in set(condition)) == model._sees_images


@pytest.mark.parametrize("name", ["wan_i2v", "wan_flf2v", "wan_i2v_without_clip"])
def test_first_and_last_of_one_frame_are_refused(name: str) -> None:
    picture = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="at least 5, got 1"):
        build(FOLDERS[name]).encode_media({"first_frame": picture, "last_frame": picture}, 1)


def test_short_tokenizer_is_refused() -> None:
    """diffusers' attention takes the last 512 tokens for the text, whatever they are."""
    pipeline = build_i2v()
    pipeline.tokenizer.model_max_length = 16
    with pytest.raises(ValueError, match="tokenizer ends at 16 tokens: expected 512"):
        WanImageToVideoModel(pipeline, device=CPU)


def test_transformer_of_another_kind_is_refused() -> None:
    pipeline = build_i2v()
    pipeline.transformer = build_ti2v().transformer
    with pytest.raises(ValueError, match="takes 4 channels: expected 12"):
        WanImageToVideoModel(pipeline, device=CPU)


def test_missing_image_encoder_is_refused() -> None:
    pipeline = build_i2v()
    pipeline.image_encoder = None
    with pytest.raises(ValueError, match="the folder has no image_encoder"):
        WanImageToVideoModel(pipeline, device=CPU)
