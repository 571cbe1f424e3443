"""A slim decoder as files, and as a switch beside a model.

    <folder>/slim_decoder.safetensors
             slim_decoder.json          its shape, and the digest of the VAE that it learned from

Latents of another VAE would decode to a plausible wrong picture, so that is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from rlvid.durable import make_folder, write_file
from rlvid.inference.slim_decoder import SlimDecoder, SlimShape

WEIGHTS_FILE, DESCRIPTION_FILE = "slim_decoder.safetensors", "slim_decoder.json"
FORMAT = 1


class SlimDecoderSwitch:
    """A slim decoder beside a model, loaded when it is first switched on."""

    def __init__(self, model: Any, folder: Path) -> None:
        self._model = model
        self._folder = folder
        self._loaded: SlimDecoder | None = None
        self.decoder: SlimDecoder | None = None
        """None while off."""

    def on(self) -> None:
        """Raises ValueError where the folder holds none of this model's VAE."""
        if self._loaded is None:
            vae = vae_of(self._model)
            self._loaded = load_slim_decoder(self._folder, vae=vae, device=self._model.device)
        self.decoder = self._loaded

    def off(self) -> None:
        self.decoder = None


def vae_of(model: Any) -> nn.Module:
    """Return the diffusers VAE of a model; ValueError where it has none."""
    vae = getattr(model, "vae", None)
    if not isinstance(vae, nn.Module) or not hasattr(vae, "config"):
        raise ValueError(
            f"inference.slim_decoder: {type(model).__name__} has no diffusers VAE in `vae`: "
            "expected the one whose frames are learned. Leave slim_decoder out"
        )
    return vae


def vae_digest(vae: nn.Module) -> str:
    """Return xxh3-128 over the weights of a VAE and its settings, hex.

    Scale and shift of the latents are among the settings; where it was read from is not.
    """
    settings = cast("Mapping[str, Any]", vae.config)
    own = {name: value for name, value in settings.items() if not name.startswith("_")}
    hasher = xxhash.xxh3_128(json.dumps(own, sort_keys=True, default=str).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        hasher.update(f"{name}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return str(hasher.hexdigest())


def save_slim_decoder(
    folder: Path, decoder: SlimDecoder, *, vae: nn.Module, about: Mapping[str, Any]
) -> None:
    """Write the folder that `load_slim_decoder` reads.

    Args:
        vae: whose frames it learned.
        about: how it was trained and what was measured, for the reader.
    """
    weights = {name: one.detach().cpu().contiguous() for name, one in decoder.state_dict().items()}
    description = {
        "format": FORMAT,
        "vae": type(vae).__name__,
        "vae_digest": vae_digest(vae),
        "shape": asdict(decoder.shape),
        "about": dict(about),
    }
    make_folder(folder)
    write_file(folder / WEIGHTS_FILE, [save(weights)])
    write_file(folder / DESCRIPTION_FILE, [(json.dumps(description, indent=1) + "\n").encode()])


def load_slim_decoder(folder: Path, *, vae: nn.Module, device: torch.device) -> SlimDecoder:
    """Read what `save_slim_decoder` wrote, frozen.

    Raises:
        ValueError: none is there, it is damaged, or it learned the frames of another VAE.
    """
    where = f"inference.slim_decoder: {str(folder)!r}"
    missing = [name for name in (DESCRIPTION_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{where} has no {missing[0]}: expected the folder that rlvid slim-decoder wrote"
        )
    try:
        tree = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS_FILE)
    except (json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"{where} is damaged ({error}); train it again") from error
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise ValueError(f"{where}: expected format {FORMAT}; train it again")
    found = vae_digest(vae)
    if tree["vae_digest"] != found:
        raise ValueError(
            f"{where} learned the frames of a VAE with digest {tree['vae_digest']}, this model's "
            f"{type(vae).__name__} has {found}: expected the same one. Train another for this "
            "model with rlvid slim-decoder"
        )
    try:
        decoder = SlimDecoder(SlimShape(**tree["shape"]))
        decoder.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{where} is damaged ({error}); train it again") from error
    return decoder.requires_grad_(False).eval().to(device)
