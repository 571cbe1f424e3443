"""torch.compile of a transformer: of each of its blocks (regional), or of the whole.

Blocks are one class, so regional compilation compiles one of them, in a fraction of the time. The
compiled forward fuses what eager mode rounds in between: expect float32 rounding, not equal bits.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn


class CompileSwitch:
    """Compiled forwards, kept while they are off."""

    def __init__(self, transformer: nn.Module, kind: Literal["regional", "full"]) -> None:
        self._transformer = transformer
        self._kind = kind
        self._compiled: list[tuple[Any, Any]] = []

    def on(self) -> None:
        """Compile at the first call, and again for a batch of another size."""
        if not self._compiled:
            check_compiler(next(self._transformer.parameters()).device)
            self._compiled = [
                (module, torch.compile(module._call_impl)) for module in self._modules()
            ]
        for module, compiled in self._compiled:
            module._compiled_call_impl = compiled  # what nn.Module.compile sets

    def off(self) -> None:
        for module, _ in self._compiled:
            module._compiled_call_impl = None

    def _modules(self) -> list[nn.Module]:
        if self._kind == "full":
            return [self._transformer]
        names = getattr(self._transformer, "_repeated_blocks", None) or ()
        found = [one for one in self._transformer.modules() if type(one).__name__ in names]
        if not found:
            raise ValueError(
                f"inference.compile: {type(self._transformer).__name__} names no repeated blocks: "
                "expected a diffusers transformer, such as Wan's. Choose 'full' or 'none'"
            )
        return found


def check_compiler(device: torch.device) -> None:
    """Compile a sum; ValueError says what torch.compile lacks on this machine."""
    try:
        torch.compile(_one_more)(torch.zeros(4, device=device))
    except Exception as error:  # whatever the back end raises, in any of its subprocesses
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"inference.compile: torch.compile does not work on {device.type} here: {reason}. "
            "Install a C++ compiler (CPU) or Triton (GPU), or choose 'none'"
        ) from error


def _one_more(values: torch.Tensor) -> torch.Tensor:
    return values + 1.0
