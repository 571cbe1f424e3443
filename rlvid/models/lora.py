"""LoRA adapters on a diffusers transformer: bind, switch off, count, save, load, fuse.

One adapter is trained at a time. Its file is what `load_lora_weights` of a family's pipeline reads.
Of two experts (Wan 2.2 A14B) the second has a file of its own, which the pipeline reads with
`load_lora_weights(folder, weight_name=LORA_FILE_2, load_into_transformer_2=True)`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlvid.config import LoraConfig
from rlvid.weights.names import ADAPTER, trainable_parameters

LORA_FILE = "pytorch_lora_weights.safetensors"
"""diffusers' name."""
LORA_FILE_2 = "pytorch_lora_weights_2.safetensors"
"""Of the second of two experts."""
_PREFIX = "transformer."
_EXPERT_FILES = {"high.": LORA_FILE, "low.": LORA_FILE_2}
"""What canonical names of `rlvid.models.experts.TwoExperts` start with, to the file of the part."""

__all__ = [
    "adapter_disabled",
    "add_lora",
    "count_adapter_modules",
    "fuse_lora",
    "load_lora",
    "read_lora",
    "save_lora",
    "trainable_parameters",
]


def add_lora(transformer: nn.Module, config: LoraConfig, *, seed: int = 0) -> None:
    """Bind a fresh adapter: A drawn from `seed`, B zero, so the policy does not change yet.

    The base is frozen in its own dtype; the adapter is float32 on every base, as peft trains it, so
    that small steps are not lost and no master copy is needed. The global random state stays as it
    was.

    Raises:
        ValueError: `target_modules` match nothing, or an adapter is bound already.
    """
    from peft import LoraConfig as PeftLoraConfig

    if count_adapter_modules(transformer):
        raise ValueError("learner.lora: an adapter is bound already; load the model again")
    if not any(name.endswith(config.target_modules) for name, _ in transformer.named_modules()):
        raise ValueError(
            f"learner.lora.target_modules: {list(config.target_modules)} match no module of "
            f"{type(transformer).__name__}; name the ends of its projection layers"
        )
    transformer.requires_grad_(False)
    peft_config = PeftLoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=list(config.target_modules)
    )
    with torch.random.fork_rng(devices=[]):
        _adapters(transformer).add_adapter(peft_config, adapter_name=ADAPTER)
    _initialise(transformer, seed)


def count_adapter_modules(transformer: nn.Module) -> int:
    """Return how many layers carry the adapter; 0 is a policy that LoRA cannot train."""
    return sum(1 for name, _ in transformer.named_modules() if name.endswith(f"lora_A.{ADAPTER}"))


@contextmanager
def adapter_disabled(transformer: nn.Module) -> Iterator[None]:
    """Within the block the transformer is its base: the policy before training.

    The switch is set on each layer rather than by `disable_adapters()`, which would also turn
    `requires_grad` of the adapter off and on again under DeepSpeed's gradient hooks.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in transformer.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def save_lora(folder: str | Path, parameters: Mapping[str, Tensor], config: LoraConfig) -> Path:
    """Write adapter tensors (canonical names) so that diffusers' pipelines load them.

    Rank and alpha go into the file's metadata; without them a loader would assume alpha = rank.
    Returns the file, of two experts the first's.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {
        f"{_PREFIX}{key}": value
        for key, value in {
            "r": config.rank,
            "lora_alpha": config.alpha,
            "target_modules": sorted(config.target_modules),
            "peft_type": "LORA",
        }.items()
    }
    about = {"format": "pt", "lora_adapter_metadata": json.dumps(metadata)}
    for start, file in _files_of(parameters).items():
        tensors = {
            _PREFIX + name.removeprefix(start): tensor.detach().cpu().contiguous()
            for name, tensor in parameters.items()
            if name.startswith(start)
        }
        save_file(tensors, folder / file, metadata=about)
    return folder / LORA_FILE


def load_lora(transformer: nn.Module, folder: str | Path) -> LoraConfig:
    """Bind an adapter of the file's rank and alpha and fill it; return its settings.

    Raises:
        ValueError: the file is missing, is no LoRA of this transformer, or misses tensors.
    """
    tensors, config = read_lora(folder)
    add_lora(transformer, config)
    live = trainable_parameters(transformer, "lora")
    if set(live) != set(tensors):
        odd = sorted(set(live) ^ set(tensors))
        raise ValueError(
            f"lora {folder}: expected the {len(live)} tensors of this transformer, got "
            f"{len(tensors)}; first that differs: {odd[0]!r}. Was it trained on another model?"
        )
    with torch.no_grad():
        for name, parameter in live.items():
            if parameter.shape != tensors[name].shape:
                raise ValueError(
                    f"lora {folder}: tensor {name!r}: expected shape {tuple(parameter.shape)}, "
                    f"got {tuple(tensors[name].shape)}"
                )
            parameter.copy_(tensors[name])
    return config


def read_lora(folder: str | Path) -> tuple[dict[str, Tensor], LoraConfig]:
    """Return the adapter tensors of a file, by canonical name, and its settings.

    Raises:
        ValueError: the file is missing or does not say its rank and alpha.
    """
    folder = Path(folder)
    if not (folder / LORA_FILE_2).is_file():
        return _read_file(folder / LORA_FILE)
    tensors: dict[str, Tensor] = {}
    for start, file in _EXPERT_FILES.items():
        part, config = _read_file(folder / file)
        tensors |= {start + name: tensor for name, tensor in part.items()}
    return tensors, config


def fuse_lora(transformer: nn.Module, folder: str | Path) -> None:
    """Add the LoRA to the base weights and remove the adapter: plain parameter names again."""
    load_lora(transformer, folder)
    adapters = _adapters(transformer)
    adapters.fuse_lora()
    adapters.unload_lora()
    transformer.requires_grad_(True)


def _files_of(names: Iterable[str]) -> dict[str, str]:
    """Return what names start with, to the file that holds them."""
    starts = {name.partition(".")[0] + "." for name in names}
    return _EXPERT_FILES if starts == set(_EXPERT_FILES) else {"": LORA_FILE}


def _read_file(path: Path) -> tuple[dict[str, Tensor], LoraConfig]:
    """Return the tensors of one file without their prefix, and its settings."""
    from safetensors import safe_open

    if not path.is_file():
        raise ValueError(f"lora: no file {path}; give the folder that holds {path.name}")
    with safe_open(str(path), framework="pt") as file:
        metadata = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        tensors = {
            key.removeprefix(_PREFIX): file.get_tensor(key)
            for key in file.keys()  # noqa: SIM118 (a safe_open is no mapping)
        }
    try:
        config = LoraConfig(
            rank=metadata[f"{_PREFIX}r"],
            alpha=metadata[f"{_PREFIX}lora_alpha"],
            target_modules=tuple(metadata[f"{_PREFIX}target_modules"]),
        )
    except KeyError as error:
        raise ValueError(
            f"lora {path}: no {error} in its metadata; it must come from rlvid or from "
            "diffusers' save_lora_weights with metadata"
        ) from error
    return tensors, config


def _adapters(transformer: nn.Module) -> Any:
    """Return the transformer as diffusers' adapter mixin, which type stubs do not describe."""
    return transformer


def _initialise(transformer: nn.Module, seed: int) -> None:
    """Redraw A as peft does (Kaiming uniform with a = sqrt 5), but from a generator of our own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in trainable_parameters(transformer, "lora").items():
            parameter.data = torch.zeros_like(parameter, dtype=torch.float32)
            if ".lora_A." not in name:
                continue
            bound = parameter.shape[1] ** -0.5
            drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.copy_((2.0 * drawn - 1.0) * bound)
