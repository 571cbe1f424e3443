"""Decoding with less memory: in tiles, or clip by clip."""

from __future__ import annotations

from typing import Any

from rlvid.config.inference import InferenceConfig
from rlvid.vae_tiles import tile_vae


class VaeSwitch:
    """Tiles or slices of a diffusers VAE, for its encoder too."""

    def __init__(self, model: Any, config: InferenceConfig) -> None:
        self._model = model
        self._config = config
        self._before: dict[str, Any] = {}
        """How the VAE was told to decode, by `model.vae_tile` or not at all."""

    def on(self) -> None:
        config = self._config
        vae: Any = getattr(self._model, "vae", None)
        if not hasattr(vae, "enable_tiling"):
            raise ValueError(
                f"inference.vae: {type(self._model).__name__} has no diffusers VAE in `vae`: "
                f"expected one for {config.vae!r}. Set vae to whole"
            )
        settings = ("use_slicing", "use_tiling", "tile_")
        self._before = {k: v for k, v in vars(vae).items() if k.startswith(settings)}
        if config.vae == "sliced":
            vae.enable_slicing()
        else:
            tile_vae(vae, config.vae_tile, config.vae_stride, where="inference.vae_tile")

    def off(self) -> None:
        vars(self._model.vae).update(self._before)
