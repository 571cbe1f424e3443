"""Canonical parameter names: the same in learner, actors and diffusers' LoRA files."""

from __future__ import annotations

from typing import Any

from torch import nn

ADAPTER = "default"
"""Name under which rlvid binds its one trained adapter."""

_LORA_MARKS = (f".lora_A.{ADAPTER}.", f".lora_B.{ADAPTER}.")


def trainable_parameters(transformer: nn.Module, mode: str) -> dict[str, nn.Parameter]:
    """Return what a run of `mode` trains and publishes, by canonical name in sorted order.

    full: every parameter under its own name. lora: the adapter's matrices without the adapter's
    name ("blocks.0.attn1.to_q.lora_A.weight"), which is how diffusers and peft write them to files.

    Raises:
        ValueError: unknown mode, or lora without a bound adapter.
    """
    if mode == "full":
        found = dict(transformer.named_parameters())
    elif mode == "lora":
        found = {
            name.replace(f".{ADAPTER}.", "."): parameter
            for name, parameter in transformer.named_parameters()
            if any(mark in name for mark in _LORA_MARKS)
        }
    else:
        raise ValueError(f"learner.mode: expected 'full' or 'lora', got {mode!r}")
    if not found:
        raise ValueError(
            f"weights: mode {mode!r} finds no parameter in {type(transformer).__name__}; "
            "for 'lora' bind the adapter first (rlvid.models.lora.add_lora)"
        )
    return dict(sorted(found.items()))


def frozen_parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """Return the base model's parameters under a bound or unbound adapter, by sorted name.

    peft renames a wrapped layer's weight to `<layer>.base_layer.weight`; that is undone, so a base
    has the same names with and without an adapter.
    """
    found = {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in transformer.named_parameters()
        if not any(mark in name for mark in _LORA_MARKS)
    }
    return dict(sorted(found.items()))


def count_bound(transformer: nn.Module, mode: str) -> int:
    """Return how many modules answer with the trained adapter added; 0 for full.

    A module whose adapter is there but switched off, merged or not the active one does not count:
    its output is the base's, whatever weights are pushed into it.
    """
    if mode == "full":
        return 0
    return sum(1 for module in transformer.modules() if _is_bound(module))


def _is_bound(module: nn.Module) -> bool:
    matrices: Any = getattr(module, "lora_A", None)
    if not isinstance(matrices, nn.ModuleDict) or ADAPTER not in matrices:
        return False
    layer: Any = module
    return ADAPTER in layer.active_adapters and not layer.disable_adapters and not layer.merged
