"""Video models: the protocol, one adapter per family, and the tiny model that ships with rlvid.

Importing this package imports no diffusers; loading a model does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch import Tensor

from rlvid.plugins import resolve
from rlvid.vae_tiles import tile_vae

if TYPE_CHECKING:
    from rlvid.config.model import ModelConfig
    from rlvid.models.base import VideoModel
    from rlvid.models.video_vae import VideoVae

MODELS = {
    "cogvideox": "rlvid.models.cogvideox:CogVideoXModel",
    "cogvideox_i2v": "rlvid.models.cogvideox_i2v:CogVideoXImageToVideoModel",
    "cosmos": "rlvid.models.cosmos:CosmosModel",
    "hunyuan_video": "rlvid.models.hunyuan_video:HunyuanVideoModel",
    "hunyuan_video15": "rlvid.models.hunyuan_video15:HunyuanVideo15Model",
    "hunyuan_video15_i2v": "rlvid.models.hunyuan_video15_i2v:HunyuanVideo15ImageModel",
    "ltx": "rlvid.models.ltx:LtxModel",
    "ltx2": "rlvid.models.ltx2:Ltx2Model",
    "mochi": "rlvid.models.mochi:MochiModel",
    "sd3": "rlvid.models.sd3:StableDiffusion3Model",
    "wan": "rlvid.models.wan:WanModel",
    "wan_experts": "rlvid.models.wan_experts:WanExpertsModel",
    "wan_i2v": "rlvid.models.wan_i2v:WanImageToVideoModel",
    "wan_ti2v": "rlvid.models.wan_ti2v:WanTextImageModel",
    "wan_vace": "rlvid.models.wan_vace:WanControlModel",
}
"""Short name to adapter class; strings, so that listing the models imports none of them."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def model_folder(config: ModelConfig) -> Path:
    """Return the pipeline folder that `model.path` names; "tiny" is the shipped one."""
    if config.path == "tiny":
        from rlvid.models.tiny import pipeline_folder

        return pipeline_folder()
    return Path(config.path).expanduser()


def load_model(config: ModelConfig, device: str | None = None) -> VideoModel:
    """Return the model of `config`, frozen but for its transformer, in evaluation mode.

    A family is a class with `load(folder, *, device, dtype, attention_backend) -> VideoModel`, and
    with `text_encoder_device` if `model.text_encoder_device` is to be set.

    Args:
        device: overrides `config.device`; "auto" is cuda where this process sees one, else cpu.
    """
    family = resolve(config.use, MODELS, where="model.use")
    load = getattr(family, "load", None)
    if load is None:
        raise ValueError(
            f"model.use: {config.use!r} has no `load`: expected a class with "
            "load(folder, *, device, dtype, attention_backend). See rlvid.models.wan."
        )
    apart = config.text_encoder_device
    model: VideoModel = load(
        model_folder(config),
        device=_device(device or config.device),
        dtype=_DTYPES[config.dtype],
        attention_backend=config.attention_backend,
        **({} if apart is None else {"text_encoder_device": _device(apart)}),
    )
    _tile(getattr(model, "vae", None), config)
    return model


def load_decoder(config: ModelConfig) -> Callable[[Tensor], Tensor]:
    """Return `VideoModel.decode` of the model of `config`, for a process that needs no more.

    A family may have `load_vae(folder, *, device) -> VideoVae`, which reads nothing else; of one
    that has not, the whole model is loaded.
    """
    family = resolve(config.use, MODELS, where="model.use")
    load = getattr(family, "load_vae", None)
    if load is None:
        return load_model(config).decode
    vae: VideoVae = load(model_folder(config), device=_device(config.device))
    _tile(vae.module, config)
    return vae.decode


def _tile(vae: Any, config: ModelConfig) -> None:
    """Have diffusers' VAE go by tiles where the recipe says so."""
    if config.vae_tile is not None:
        tile_vae(vae, config.vae_tile, config.vae_tile * 3 // 4, where="model.vae_tile")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def digest_folder(path: str | Path) -> str:
    """Return the xxh3-128 digest, hex, over the names and contents of every file under `path`.

    The same files give the same digest wherever the folder lies; an actor compares it with the
    manifest's `base_digest` to see that it holds the base model that the weights belong to.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"model.path: no folder at {folder}. Give a pipeline folder, or 'tiny'.")
    digest = xxhash.xxh3_128()
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        content = file.read_bytes()
        # Lengths keep (name, content) pairs apart: without them a byte could move between the two.
        digest.update(f"{file.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return str(digest.hexdigest())
