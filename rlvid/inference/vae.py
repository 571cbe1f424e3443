"""Decoding with less memory: in tiles, or clip by clip."""

from __future__ import annotations

from typing import Any

from rlvid.config.inference import InferenceConfig


class VaeSwitch:
    """Tiles or slices of a diffusers VAE, for its encoder too."""

    def __init__(self, model: Any, config: InferenceConfig) -> None:
        self._model = model
        self._config = config

    def on(self) -> None:
        vae: Any = getattr(self._model, "vae", None)
        if not hasattr(vae, "enable_tiling"):
            raise ValueError(
                f"inference.vae: {type(self._model).__name__} has no diffusers VAE in `vae`: "
                f"expected one for {self._config.vae!r}. Set vae to whole"
            )
        if self._config.vae == "sliced":
            vae.enable_slicing()
            return
        tile, stride = self._config.vae_tile, self._config.vae_stride
        vae.enable_tiling(
            tile_sample_min_height=tile,
            tile_sample_min_width=tile,
            tile_sample_stride_height=stride,
            tile_sample_stride_width=stride,
        )

    def off(self) -> None:
        vae = self._model.vae
        if self._config.vae == "sliced":
            vae.disable_slicing()
        else:
            vae.disable_tiling()
