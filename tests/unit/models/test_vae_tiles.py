"""Tiles of every family's VAE: nearly the same frames, back again, and sizes that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from rlvid.config import ModelConfig
from rlvid.config.inference import InferenceConfig
from rlvid.inference.vae import VaeSwitch
from rlvid.models import load_decoder, load_model
from rlvid.vae_tiles import tile_vae
from tests.unit.models.family_checks import FAMILIES, build


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_decodes_in_tiles_of_the_size_asked(name: str) -> None:
    """Up to the stride, the first tile is shown as it is; a clip of one tile is decoded whole."""
    family = FAMILIES[name]
    model = build(family)
    tile, stride = 2 * family.units[1], family.units[1]
    shape = model.latent_shape(family.clip[0], 2 * tile, 2 * tile)
    latents = torch.randn(1, *shape, generator=seeded())
    corner = latents[..., : shape[-2] // 2, : shape[-1] // 2]
    whole, first = model.decode(latents), model.decode(corner)
    switch = VaeSwitch(model, InferenceConfig(vae="tiled", vae_tile=tile, vae_stride=stride))
    switch.on()
    tiled, one = model.decode(latents), model.decode(corner)
    switch.off()
    assert torch.equal(one, first)
    assert tiled.shape == whole.shape
    torch.testing.assert_close(tiled[..., :stride, :stride], first[..., :stride, :stride])
    assert not torch.allclose(tiled[..., :stride, :stride], whole[..., :stride, :stride])
    assert torch.equal(model.decode(latents), whole)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_recipe_has_decoder_and_model_go_by_the_same_tiles() -> None:
    whole, tiled = ModelConfig(device="cpu"), ModelConfig(device="cpu", vae_tile=32)
    model = load_model(tiled)
    latents = torch.randn(1, *model.latent_shape(5, 64, 64), generator=seeded())
    frames = model.decode(latents)
    assert torch.equal(load_decoder(tiled)(latents), frames)
    assert not torch.equal(load_decoder(whole)(latents), frames)


def test_setting_of_a_search_gives_the_recipes_tiles_back() -> None:
    model = load_model(ModelConfig(device="cpu", vae_tile=32))
    latents = torch.randn(1, *model.latent_shape(5, 64, 64), generator=seeded())
    before = model.decode(latents)
    switch = VaeSwitch(model, InferenceConfig(vae="tiled", vae_tile=16, vae_stride=8))
    switch.on()
    assert not torch.equal(model.decode(latents), before)
    switch.off()
    assert torch.equal(model.decode(latents), before)


@pytest.mark.parametrize("tile", [16, 34])
def test_tiles_too_small_or_without_a_quarter_are_refused(tile: int) -> None:
    with pytest.raises(ValidationError, match="vae_tile"):
        ModelConfig(vae_tile=tile)


def test_tiles_across_latent_positions_are_refused() -> None:
    message = r"model.vae_tile: expected tiles .* multiples of 8 pixels, .* got 36 and 27"
    with pytest.raises(ValueError, match=message):
        load_decoder(ModelConfig(device="cpu", vae_tile=36))


def test_model_without_tiles_is_refused() -> None:
    nothing: Any = object()
    with pytest.raises(ValueError, match=r"model.vae_tile: object does not decode in tiles"):
        tile_vae(nothing, 64, 48, where="model.vae_tile")
