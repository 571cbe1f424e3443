"""The other policy of the KL: the one before training, or a copy that follows at a distance."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from rlvid.config import KlConfig
from rlvid.learners.zero_engine import ZeroEngine
from rlvid.models.base import VideoModel
from rlvid.weights import trainable_parameters

_FILE = "anchor.safetensors"


class Reference:
    """Lets the model speak as the reference for the length of a block.

    LoRA with kind "reference" switches the adapter off and costs no memory. Every other case holds
    a whole frozen copy of the transformer on each rank, ZeRO or not.
    """

    def __init__(self, model: VideoModel, config: KlConfig, *, mode: str) -> None:
        """Take the copy; `model.transformer` is still bare here."""
        self._model = model
        self._config = config
        self._mode = mode
        self._copy: nn.Module | None = None
        self._transformer = model.transformer
        if self.is_used and not self._switches_adapter:
            self._copy = copy.deepcopy(model.transformer).requires_grad_(False)

    @property
    def is_used(self) -> bool:
        return self._config.kind != "none"

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Within the block `model.velocity` is the reference's."""
        if self._switches_adapter:
            from rlvid.models.lora import adapter_disabled

            with adapter_disabled(self._transformer):
                yield
            return
        assert self._copy is not None, "a reference speaks only where the KL asks for one"
        policy, self._model.transformer = self._model.transformer, self._copy
        try:
            yield
        finally:
            self._model.transformer = policy

    def after_step(self, engine: ZeroEngine, step: int) -> None:
        """Renew a moving anchor after optimiser step `step` (0-based) when due; a collective."""
        if self._config.kind != "moving_anchor" or (step + 1) % self._config.anchor_every:
            return
        assert self._copy is not None, "a moving anchor is always a copy"
        held = trainable_parameters(self._copy, self._mode)
        with torch.no_grad():
            for name, value in engine.full_parameters():
                held[name].copy_(value)

    def save(self, folder: Path, *, is_root: bool) -> None:
        """Write a moving anchor; a fixed reference is read from the policy's files again."""
        from safetensors.torch import save_file

        if self._config.kind != "moving_anchor" or not is_root:
            return
        assert self._copy is not None, "a moving anchor is always a copy"
        held = trainable_parameters(self._copy, self._mode)
        save_file({name: value.cpu().contiguous() for name, value in held.items()}, folder / _FILE)

    def load(self, folder: Path) -> None:
        from safetensors.torch import load_file

        if self._config.kind != "moving_anchor":
            return
        assert self._copy is not None, "a moving anchor is always a copy"
        loaded = load_file(folder / _FILE)
        with torch.no_grad():
            for name, value in trainable_parameters(self._copy, self._mode).items():
                value.copy_(loaded[name])

    @property
    def _switches_adapter(self) -> bool:
        return self._mode == "lora" and self._config.kind == "reference"
