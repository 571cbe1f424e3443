"""Quantised linear layers through torchao.

| name | weights | activations | needs |
| -- | -- | -- | -- |
| int8_weight_only | int8, one scale a row | as they are | torchao |
| int8_dynamic | int8, one scale a row | int8, one scale a token, taken as they come | torchao |
| fp8_weight_only | float8 e4m3 | as they are | torchao |
| fp8_dynamic | float8 e4m3 | float8 e4m3 | torchao, CUDA 8.9 or newer |

Only the linear layers of the transformer's blocks: embeddings and the last projection are small and
sensitive, and a LoRA keeps its own type. The float weights stay where they were, so that switching
off is exact and at once; what is saved is time, not memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from rlvid.config.inference import QuantiseName

INSTALL = "pip install --no-deps torchao==0.18.0"
CONFIGS: Mapping[str, str] = {
    "int8_weight_only": "Int8WeightOnlyConfig",
    "int8_dynamic": "Int8DynamicActivationInt8WeightConfig",
    "fp8_weight_only": "Float8WeightOnlyConfig",
    "fp8_dynamic": "Float8DynamicActivationFloat8WeightConfig",
}
"""Our name to the class in torchao.quantization."""


class QuantiseSwitch:
    """Float and quantised weights of the same layers, of which one set is in place."""

    def __init__(self, transformer: nn.Module, name: QuantiseName) -> None:
        self._transformer = transformer
        self._name = name
        self._float: dict[str, Tensor] = {}
        self._quantised: dict[str, Tensor] = {}

    def on(self) -> None:
        """Quantise, the first time; ValueError says what is missing."""
        if not self._quantised:
            layers = block_layers(self._transformer)
            check_quantise(self._name, next(self._transformer.parameters()).device)
            if not layers:
                raise ValueError(
                    f"inference.quantise: {type(self._transformer).__name__} has no linear layers "
                    "in `blocks`: expected a transformer built as Wan's. Set quantise to none"
                )
            self._float = {name: layer.weight for name, layer in layers.items()}
            self._quantise(layers)
            self._quantised = {name: layer.weight for name, layer in layers.items()}
        self._put(self._quantised)

    def off(self) -> None:
        self._put(self._float)

    def _quantise(self, layers: Mapping[str, nn.Linear]) -> None:
        import torchao.quantization as torchao

        try:
            torchao.quantize_(
                self._transformer,
                getattr(torchao, CONFIGS[self._name])(),
                filter_fn=lambda module, name: name in layers,
            )
        except (AssertionError, RuntimeError, NotImplementedError, ValueError) as error:
            self._put(self._float)
            reason = " ".join(str(error).split())
            raise ValueError(
                f"inference.quantise: {self._name} fails on this model: {reason}. Choose another"
            ) from error

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        layers: dict[str, Any] = dict(self._transformer.named_modules())
        for name, weight in weights.items():
            layers[name].weight = weight


def block_layers(transformer: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of the blocks by name, without those of an adapter."""
    return {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("blocks.") and ".lora_" not in name
    }


def check_quantise(name: QuantiseName, device: torch.device) -> None:
    """Raise ValueError unless torchao is there and the device has the type."""
    if find_spec("torchao") is None:
        raise ValueError(
            f"inference.quantise: {name} needs the package torchao, which is not installed. "
            f"Install it ({INSTALL}), or set quantise to none"
        )
    if name != "fp8_dynamic":
        return
    if device.type != "cuda":
        raise ValueError(
            "inference.quantise: fp8_dynamic needs a CUDA device of compute capability 8.9 or "
            f"newer, got {device.type}. Choose int8_dynamic"
        )
    found = torch.cuda.get_device_capability(device)
    if found < (8, 9):
        raise ValueError(
            "inference.quantise: fp8_dynamic needs compute capability 8.9 or newer, got "
            f"{found[0]}.{found[1]}. Choose int8_dynamic"
        )
