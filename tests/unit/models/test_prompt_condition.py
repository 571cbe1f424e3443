"""Prompts with pictures: what a model is told of them, in rollout and in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from rlvid.data.prompts import with_media
from rlvid.flow.prompt_condition import canary_condition, prompt_condition
from rlvid.media import read_media
from rlvid.models.tiny_families.wan import tiny_flf2v, tiny_i2v, tiny_ti2v
from rlvid.models.wan_i2v import IMAGE_EMBEDS, IMAGE_LATENTS, WanImageToVideoModel
from rlvid.records import Prompt
from rlvid.seeds import prompt_id
from rlvid.testing import tiny_model

SHAPE = (4, 3, 4, 4)
"""Latents of clips of 9x32x32."""
TEXT = "a red ball falls"


@pytest.fixture(scope="module")
def model() -> WanImageToVideoModel:
    return tiny_i2v()


def write_picture(path: Path, seed: int = 0) -> Path:
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (20, 24, 3), generator=generator).byte()
    Image.fromarray(levels.numpy()).save(path)
    return path


def prompt_of(folder: Path, **media: int) -> Prompt:
    """Return a prompt; `media` are seeds of pictures."""
    prompt = Prompt(prompt_id=prompt_id(TEXT), text=TEXT)
    paths = {}
    for name, seed in media.items():
        paths[name] = write_picture(folder / f"{name}-{seed}.png", seed).name
    return with_media(prompt, paths, where="test", folder=folder)


def test_text_alone_is_encoded_as_ever() -> None:
    """Not one bit may change for those who know nothing of media."""
    model = tiny_model()
    prompts = [prompt_of(Path()), replace(prompt_of(Path()), enhanced_text="a blue box")]
    condition, negative = prompt_condition(model, prompts, SHAPE)
    assert set(condition) == set(negative) == {"prompt_embeds"}
    assert torch.equal(
        condition["prompt_embeds"], model.encode_prompts([TEXT, "a blue box"])["prompt_embeds"]
    )
    assert torch.equal(negative["prompt_embeds"], model.encode_prompts([""])["prompt_embeds"])
    assert set(canary_condition(model, TEXT, SHAPE)) == {"prompt_embeds"}


def test_pictures_are_in_the_condition_and_in_the_negative(
    model: WanImageToVideoModel, tmp_path: Path
) -> None:
    prompts = [prompt_of(tmp_path, first_frame=1), prompt_of(tmp_path, first_frame=2)]
    condition, negative = prompt_condition(model, prompts, SHAPE)
    pixels = [
        read_media("first_frame", prompt.media["first_frame"], num_frames=9, height=32, width=32)
        for prompt in prompts
    ]
    expected = model.encode_media({"first_frame": torch.stack(pixels)}, 9)
    for name in (IMAGE_LATENTS, IMAGE_EMBEDS):
        assert torch.equal(condition[name], expected[name])
        assert torch.equal(negative[name], expected[name])
    empty = model.encode_prompts(["", ""])
    assert torch.equal(negative["prompt_embeds"], empty["prompt_embeds"])


def test_media_are_encoded_once_and_can_be_trained_on(
    model: WanImageToVideoModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VAE pass over a whole clip for each micro-batch would cost more than the forward."""
    calls, encode = [], model.encode_media

    def counted(media: dict[str, Tensor], num_frames: int) -> object:
        calls.append(num_frames)
        return encode(media, num_frames)

    monkeypatch.setattr(model, "encode_media", counted)
    prompt = prompt_of(tmp_path, first_frame=3)
    with torch.inference_mode():
        prompt_condition(model, [prompt], SHAPE)
    condition, _ = prompt_condition(model, [prompt], SHAPE)
    assert calls == [9]
    model.velocity(torch.randn(1, *SHAPE), torch.tensor([0.5]), condition).sum().backward()
    model.transformer.zero_grad()
    prompt_condition(model, [prompt], (4, 2, 4, 4))
    assert calls == [9, 5]


def test_model_that_may_take_a_picture_needs_none(tmp_path: Path) -> None:
    model = tiny_ti2v()
    without, _ = prompt_condition(model, [prompt_of(tmp_path)], SHAPE)
    given, _ = prompt_condition(model, [prompt_of(tmp_path, first_frame=1)], SHAPE)
    assert set(given) - set(without) == {"first_frame_latents"}
    mixed = [prompt_of(tmp_path), prompt_of(tmp_path, first_frame=1)]
    with pytest.raises(ValueError, match="expected the same in one batch"):
        prompt_condition(model, mixed, SHAPE)


@pytest.mark.parametrize(
    ("build", "media", "message"),
    [
        (tiny_model, {"first_frame": 1}, r"WanModel needs \[\] and takes \[\]"),
        (tiny_i2v, {}, r"media \[\]: WanImageToVideoModel needs \['first_frame'\]"),
        (tiny_i2v, {"first_frame": 1, "last_frame": 2}, r"takes \['first_frame'\]"),
        (tiny_flf2v, {"first_frame": 1}, r"needs \['first_frame', 'last_frame'\]"),
    ],
)
def test_media_that_do_not_fit_the_model_are_refused(
    build: Callable[[], WanImageToVideoModel], media: dict[str, int], message: str, tmp_path: Path
) -> None:
    """A picture that is silently left out would be a rollout of another prompt."""
    with pytest.raises(ValueError, match=message):
        prompt_condition(build(), [prompt_of(tmp_path, **media)], SHAPE)


def test_file_that_changed_since_the_set_was_read_is_refused(
    model: WanImageToVideoModel, tmp_path: Path
) -> None:
    """Rollout and learner open it at different times; the ratio would be of two prompts."""
    prompt = prompt_of(tmp_path, first_frame=4)
    write_picture(Path(prompt.media["first_frame"]), seed=5)
    with pytest.raises(ValueError, match="are other files than those of prompt_id"):
        prompt_condition(model, [prompt], SHAPE)
    Path(prompt.media["first_frame"]).unlink()
    with pytest.raises(ValueError, match=r"media\.first_frame: .*cannot be read on this machine"):
        prompt_condition(model, [prompt], SHAPE)


def test_canary_of_a_model_that_needs_pictures_is_of_grey_ones(
    model: WanImageToVideoModel,
) -> None:
    """It asks what the weights are, on machines that share no picture."""
    condition = canary_condition(model, TEXT, SHAPE)
    grey = model.encode_media({"first_frame": torch.full((1, 3, 32, 32), 0.5)}, 9)
    assert torch.equal(condition[IMAGE_LATENTS], grey[IMAGE_LATENTS])
