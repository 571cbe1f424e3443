"""A slim decoder: its frames, its streams, its folder, and as a setting of a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from rlvid.config.inference import InferenceConfig
from rlvid.inference import slim_decoder
from rlvid.inference.optimise import OptimisedModel, optimise
from rlvid.inference.slim_decoder import (
    MemoryBlock,
    SlimDecoder,
    SlimShape,
    SlimStream,
    shape_between,
)
from rlvid.inference.slim_folder import load_slim_decoder, save_slim_decoder, vae_digest, vae_of
from rlvid.models.base import VideoModel
from rlvid.testing import tiny_model

Applied = Callable[..., OptimisedModel]
CPU = torch.device("cpu")
OF_TINY = SlimShape(channels=4, temporal=4, spatial=8, width=4, num_blocks=1)


def made(shape: SlimShape = OF_TINY) -> SlimDecoder:
    """Return a random decoder whose blocks do something, as those of a new one do not."""
    torch.manual_seed(0)
    decoder = SlimDecoder(shape).requires_grad_(False)
    for module in decoder.modules():
        if isinstance(module, MemoryBlock):
            nn.init.normal_(module.outer.weight, std=0.1)
    return decoder


@pytest.fixture
def latents(model: VideoModel) -> Tensor:
    return torch.randn(2, *model.latent_shape(17, 16, 24))


@pytest.fixture
def folder(model: VideoModel, tmp_path: Path) -> Path:
    save_slim_decoder(tmp_path / "slim", made(), vae=vae_of(model), about={})
    return tmp_path / "slim"


@pytest.mark.parametrize(
    ("spatial", "temporal", "frames", "num_frames"),
    [(8, 4, 5, 17), (8, 4, 1, 1), (2, 1, 3, 3), (16, 2, 2, 3), (32, 8, 3, 17), (8, 6, 2, 7)],
)
def test_frames_are_those_of_the_family(
    spatial: int, temporal: int, frames: int, num_frames: int
) -> None:
    """Ratios of Wan and most others, of images, of Wan 2.2 and LTX, of Mochi."""
    shape = SlimShape(channels=3, temporal=temporal, spatial=spatial, width=2, num_blocks=1)
    found = made(shape).decode(torch.randn(2, 3, frames, 2, 3))
    assert found.shape == (2, num_frames, 3, 2 * spatial, 3 * spatial)
    assert found.dtype == torch.float32
    assert 0.0 <= found.min() < found.max() <= 1.0


def test_shape_is_read_off_latents_and_videos(model: VideoModel) -> None:
    latents = torch.randn(1, *model.latent_shape(9, 16, 24))
    assert shape_between(latents, model.decode(latents), width=4, num_blocks=1) == OF_TINY
    image = shape_between(torch.zeros(1, 16, 1, 4, 4), torch.zeros(1, 1, 3, 32, 32))
    assert (image.temporal, image.spatial) == (1, 8)
    with pytest.raises(ValueError, match=r"expected \[17, 3, 32, 32\] of each clip, one ratio"):
        shape_between(torch.zeros(1, 16, 5, 4, 4), torch.zeros(1, 19, 3, 32, 32))
    with pytest.raises(ValueError, match="spatial: expected a power of two from 2 on, got 6"):
        SlimShape(channels=4, temporal=1, spatial=6)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1], [2, 3], [1, 4]])
def test_stream_gives_the_frames_of_the_whole(latents: Tensor, sizes: list[int]) -> None:
    """Other batches round otherwise; 1e-6 of [0, 1] is some roundings of float32."""
    decoder = made(SlimShape(channels=4, temporal=4, spatial=8, width=8, num_blocks=2))
    stream = SlimStream(decoder)
    parts = [stream.decode(part) for part in latents.split(sizes, dim=2)]
    assert [part.shape[1] for part in parts] == [
        1 + 4 * (sizes[0] - 1),
        *(4 * n for n in sizes[1:]),
    ]
    torch.testing.assert_close(torch.cat(parts, 1), decoder.decode(latents), rtol=0.0, atol=1e-6)


def test_large_clips_go_stretch_by_stretch(
    latents: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, seen = made(), []
    whole = decoder.decode(latents)
    monkeypatch.setattr(slim_decoder, "PIXELS_AT_ONCE", 2 * 2 * 4 * 16 * 24)
    decoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[2]))
    torch.testing.assert_close(decoder.decode(latents), whole, rtol=0.0, atol=1e-6)
    assert seen == [2, 2, 1]


def test_no_frame_sees_the_future(latents: Tensor) -> None:
    decoder, other = made(), latents.clone()
    other[:, :, 3] += 1.0
    before, after = decoder.decode(latents), decoder.decode(other)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.equal(before[:, 9:13], after[:, 9:13])
    assert not torch.equal(before[:, 13:], after[:, 13:]), "the next latent frame remembers"


def test_setting_decodes_with_it_and_leaves_the_model_as_it_was(
    model: VideoModel, applied: Applied, folder: Path, latents: Tensor
) -> None:
    by_vae, by_slim = model.decode(latents), made().decode(latents)
    optimised = applied(slim_decoder=str(folder))
    assert torch.equal(optimised.decode(latents), by_slim)
    torch.testing.assert_close(optimised.open_stream()(latents), by_slim, rtol=0.0, atol=1e-6)
    with optimised.plain():
        assert torch.equal(optimised.decode(latents), by_vae)
        torch.testing.assert_close(optimised.open_stream()(latents), by_vae, rtol=0.0, atol=1e-6)
    assert torch.equal(optimised.decode(latents), by_slim)
    assert torch.equal(model.decode(latents), by_vae)
    optimised.undo()
    assert torch.equal(optimised.decode(latents), by_vae)


def test_folder_gives_back_the_decoder(folder: Path, model: VideoModel, latents: Tensor) -> None:
    read = load_slim_decoder(folder, vae=vae_of(model), device=CPU)
    assert read.shape == OF_TINY
    assert not any(one.requires_grad for one in read.parameters())
    assert torch.equal(read.decode(latents), made().decode(latents))


def test_another_vae_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"learned the frames of a VAE with digest .* the same"):
        optimise(tiny_model(seed=1), InferenceConfig(slim_decoder=str(folder)))


def test_digest_is_of_weights_and_scale(model: VideoModel) -> None:
    vae: Any = vae_of(model)
    before = vae_digest(vae)
    assert vae_digest(vae_of(tiny_model())) == before
    vae.register_to_config(latents_mean=[0.5, *vae.config.latents_mean[1:]])
    assert vae_digest(vae) != before


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "slim_decoder.json").unlink(), "has no slim_decoder.json: expected the"),
        (lambda f: (f / "slim_decoder.json").write_text("{"), "is damaged .*train it again"),
        (lambda f: _edit(f / "slim_decoder.json", format=0), "expected format 1"),
        (lambda f: _edit(f / "slim_decoder.json", shape={}), "is damaged .*train it again"),
        (lambda f: (f / "slim_decoder.safetensors").write_bytes(b"0" * 9), "is damaged"),
    ],
)
def test_folder_that_is_no_such_decoder_is_named(
    spoil: Callable[[Path], object], message: str, folder: Path, model: VideoModel
) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_slim_decoder(folder, vae=vae_of(model), device=CPU)
    assert str(folder) in str(error.value)


def test_model_without_vae_or_stream_says_so(model: VideoModel) -> None:
    class Bare:
        transformer, device = nn.Linear(1, 1), CPU

        def encode_prompts(self, texts: list[str]) -> None: ...

    bare = cast(VideoModel, Bare())
    with pytest.raises(ValueError, match="Bare has no diffusers VAE in `vae`: expected the one"):
        optimise(bare, InferenceConfig(slim_decoder="slim"))
    with pytest.raises(ValueError, match=r"Bare has no open_stream\(\): .* or a slim decoder"):
        optimise(bare, InferenceConfig()).open_stream()
