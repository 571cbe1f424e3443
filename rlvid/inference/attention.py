"""Attention kernels by name, through diffusers' attention dispatcher.

| name | dispatcher | needs |
| -- | -- | -- |
| native | native | torch's scaled_dot_product_attention; any device and type |
| flex | flex | torch; any device, but without `compile` it holds every score in memory |
| flash | flash | flash-attn >= 2.6.3, CUDA 8.0, bfloat16 or float16 |
| flash-3 | _flash_3 | flash_attn_interface (built from source), CUDA 9.0 (Hopper), bfloat16 |
| xformers | xformers | xformers >= 0.0.29, CUDA |
| sage | sage | sageattention >= 2.1.1, CUDA 8.0, bfloat16 or float16; 8-bit queries and keys |

A name that cannot run here is an error: nothing falls back to another kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What a kernel is called in the dispatcher, and what it needs."""

    dispatcher: str
    module: str | None = None
    """Imported as."""
    install: str = ""
    """What to install for it."""
    needs_cuda: bool = False
    capability: tuple[int, int] = (0, 0)
    """Least compute capability of the GPU."""
    is_of_one_generation: bool = False
    """The kernel is of that capability's generation, not of later ones."""
    dtypes: tuple[torch.dtype, ...] = ()
    """Of queries, keys and values; empty: any."""


BACKENDS: Mapping[str, Backend] = {
    "native": Backend(dispatcher="native"),
    "flex": Backend(dispatcher="flex"),
    "flash": Backend(
        dispatcher="flash",
        module="flash_attn",
        install="pip install 'flash-attn>=2.6.3' --no-build-isolation",
        needs_cuda=True,
        capability=(8, 0),
        dtypes=_HALF,
    ),
    "flash-3": Backend(
        dispatcher="_flash_3",
        module="flash_attn_interface",
        install="build hopper/ of github.com/Dao-AILab/flash-attention",
        needs_cuda=True,
        capability=(9, 0),
        is_of_one_generation=True,
        dtypes=_HALF,
    ),
    "xformers": Backend(
        dispatcher="xformers",
        module="xformers",
        install="pip install 'xformers>=0.0.29'",
        needs_cuda=True,
    ),
    "sage": Backend(
        dispatcher="sage",
        module="sageattention",
        install="pip install 'sageattention>=2.1.1'",
        needs_cuda=True,
        capability=(8, 0),
        dtypes=_HALF,
    ),
}


class AttentionSwitch:
    """Every attention of a transformer through one kernel."""

    def __init__(self, transformer: nn.Module, name: str) -> None:
        self._transformer: Any = transformer
        self._name = name
        self._chosen: list[tuple[Any, Any, Any]] = []
        """Processor, its kernel before, and its kernel."""

    def on(self) -> None:
        """Raises ValueError naming all that is missing."""
        if not self._chosen:
            self._choose()
        for processor, _, backend in self._chosen:
            processor._attention_backend = backend

    def off(self) -> None:
        for processor, before, _ in self._chosen:
            processor._attention_backend = before

    def _choose(self) -> None:
        from diffusers.models.attention_dispatch import attention_backend

        # Of the first convolution or projection: some norms stay in float32 whatever
        # `model.dtype` says.
        weight = next(self._transformer.parameters())
        check_backend(self._name, weight.device, weight.dtype)
        processors = [
            module.processor
            for module in self._transformer.modules()
            if hasattr(getattr(module, "processor", None), "_attention_backend")
        ]
        before = [(processor, processor._attention_backend) for processor in processors]
        try:
            # diffusers also makes the name the process's default, which every model without a name
            # of its own would follow; the block puts the former default back.
            with attention_backend("native"):
                self._transformer.set_attention_backend(BACKENDS[self._name].dispatcher)
        except (ValueError, RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"inference.attention: {self._name!r} is not available here: {reason}"
            ) from error
        self._chosen = [(one, kernel, one._attention_backend) for one, kernel in before]


def check_backend(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError unless the kernel runs on `device` with values of `dtype`."""
    backend = BACKENDS[name]
    missing = []
    if backend.module is not None and find_spec(backend.module) is None:
        missing.append(f"the package {backend.module} ({backend.install})")
    if backend.needs_cuda and device.type != "cuda":
        missing.append(f"a CUDA device, got {device.type}")
    elif backend.needs_cuda:
        missing += _lacks_capability(backend, torch.cuda.get_device_capability(device))
    if backend.dtypes and dtype not in backend.dtypes:
        missing.append(f"model.dtype bfloat16, got {str(dtype).removeprefix('torch.')}")
    if missing:
        raise ValueError(
            f"inference.attention: {name!r} is not available here: it needs "
            f"{'; '.join(missing)}. Provide that, or choose 'native'"
        )


def _lacks_capability(backend: Backend, found: tuple[int, int]) -> list[str]:
    least = backend.capability
    is_other = backend.is_of_one_generation and found[0] != least[0]
    if found >= least and not is_other:
        return []
    kind = "exactly generation" if backend.is_of_one_generation else "at least"
    return [f"compute capability {kind} {least[0]}.{least[1]}, got {found[0]}.{found[1]}"]
