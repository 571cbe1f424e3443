"""A Qwen2-VL backbone with a small head on special tokens: what HPSv3 and VideoAlign are made of.

Written from the public code of MizzenAI/HPSv3 and KwaiVGI/VideoAlign as read: the final hidden
states of the text decoder at the special tokens go through the head. That code hands the decoder no
vision grid, so its positions simply count tokens (no M-RoPE), and the weights were trained so; the
same is done here. Letters: L tokens, D hidden width, S special tokens, K outputs of the head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlvid.rewards.specialists.needs import MissingPartError, need_file

BASE_FILES = "the config, tokenizer and processor of the Qwen2-VL model it was trained from"

VIDEO_PATCHES = 128
"""Least number of merged patches of a frame of a video, as Qwen's public utilities set it; smaller
clips are enlarged. A single picture always gets its `max_pixels`, as HPSv3 sets both bounds."""

_RENAMED = (
    (re.compile(r"^(module\.)?(base_model\.model\.)?"), ""),
    (re.compile(r"\.modules_to_save\.default\."), "."),
    (re.compile(r"\.base_layer\."), "."),
    (re.compile(r"\.lora_([AB])\.default\."), r".lora_\1."),
    (re.compile(r"^model\.(visual|language_model)\."), r"\1."),
    (re.compile(r"^model\.(layers|embed_tokens|norm)\."), r"language_model.\1."),
)
"""From the names of peft and of older transformers to those of Qwen2VLModel."""


class QwenReward:
    """The opened model: pixels and a question in, a row of the head for each special token out."""

    def __init__(
        self,
        model: nn.Module,
        head: nn.Module,
        processor: Any,
        tokens: Sequence[str],
    ) -> None:
        """`tokens` are the special tokens; the processor's tokenizer already knows them."""
        self._model, self._head, self._processor = model, head, processor
        self.tokens = tuple(tokens)
        self._token_ids = processor.tokenizer.convert_tokens_to_ids(list(tokens))

    @torch.no_grad()
    def read(self, frames: Tensor, question: str, *, as_video: bool, max_pixels: int) -> Tensor:
        """Return [S, K] float32.

        Args:
            frames: [T, 3, H, W] float32 in [0, 1]; one picture when not `as_video`.
            question: the text after the picture, with every special token once.
            max_pixels: of one frame; it is resized, its shape kept, to multiples of a patch.
        """
        kind = "video" if as_video else "image"
        content = [{"type": kind}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        text = self._processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        pixels = self._resized(frames, max_pixels, as_video=as_video)
        media = {f"{kind}s": [pixels if as_video else pixels[0]]}
        inputs = self._processor(
            text=[text],
            **media,
            do_resize=False,
            return_tensors="pt",
            return_mm_token_type_ids=False,
        )
        inputs = inputs.to(frames.device)
        self._model.to(frames.device)
        self._head.to(frames.device)
        ids = inputs["input_ids"]
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, 1, -1)
        states = self._model(**inputs, position_ids=positions, use_cache=False).last_hidden_state[0]
        rows = [self._place(ids[0], number) for number in range(len(self.tokens))]
        result: Tensor = self._head(states[rows].float())
        return result

    def _place(self, ids: Tensor, number: int) -> int:
        places = (ids == self._token_ids[number]).nonzero().flatten().tolist()
        if len(places) != 1:
            raise ValueError(
                f"the question must have {self.tokens[number]} exactly once, got {len(places)}. "
                "A prompt of the user must not contain it; else mend prompt.txt."
            )
        return int(places[0])

    def _resized(self, frames: Tensor, max_pixels: int, *, as_video: bool) -> Tensor:
        """[T, 3, H, W] in [0, 1] -> [T, 3, H', W'] uint8, as Qwen2-VL's preprocessing does it."""
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        processor = self._processor.image_processor
        factor = processor.patch_size * processor.merge_size
        least = min(VIDEO_PATCHES * factor * factor, max_pixels) if as_video else max_pixels
        height, width = smart_resize(
            *frames.shape[2:], factor=factor, min_pixels=least, max_pixels=max_pixels
        )
        resized = functional.interpolate(
            frames, (height, width), mode="bicubic", antialias=True, align_corners=False
        )
        return (resized * 255.0).round().clamp(0, 255).to(torch.uint8)


def open_qwen_reward(
    base: Path,
    state: Mapping[str, Tensor],
    *,
    tokens: Sequence[str],
    scorer: str,
    lora_scale: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> QwenReward:
    """Build the model that `state` holds the weights of.

    Args:
        base: folder with `BASE_FILES`; its weights are read only when `state` has none of the
            backbone (a bare LoRA adapter).
        state: weights under any of the names that public checkpoints use, LoRA included.
        lora_scale: alpha / rank; None when `state` has no LoRA.
    """
    from transformers import AutoConfig, AutoProcessor, Qwen2VLModel

    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        need_file(base, name, scorer=scorer, what=BASE_FILES)
    processor = AutoProcessor.from_pretrained(base, local_files_only=True)
    processor.tokenizer.add_tokens(list(tokens), special_tokens=True)
    weights = rename(state)
    head = build_head({k: v for k, v in weights.items() if k.startswith("rm_head.")}, scorer)
    body = {k: v for k, v in weights.items() if not k.startswith(("rm_head.", "lm_head."))}
    if "language_model.layers.0.self_attn.q_proj.weight" not in body:
        body = {**_base_weights(base, scorer), **body}
    body = merge_lora(body, lora_scale, scorer)
    model = Qwen2VLModel(AutoConfig.from_pretrained(base, local_files_only=True))
    embedding = body.get("language_model.embed_tokens.weight")
    if embedding is not None and len(embedding) != model.config.text_config.vocab_size:
        model.resize_token_embeddings(len(embedding), mean_resizing=False)
    missing, surplus = model.load_state_dict(body, strict=False)
    if missing or surplus:
        raise MissingPartError(
            f"{scorer}: the weights do not fit the model of {base}: missing "
            f"{', '.join(missing[:3]) or 'none'}, surplus {', '.join(surplus[:3]) or 'none'} "
            f"({len(missing)} and {len(surplus)} in all). Use the base model it was trained from."
        )
    model.requires_grad_(False).eval().to(dtype)
    return QwenReward(model, head.requires_grad_(False).eval(), processor, tokens)


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the names of Qwen2VLModel; the head's begin with "rm_head."."""
    renamed = {}
    for name, value in state.items():
        if ".original_module." in name:  # what peft keeps of a module that was trained in full
            continue
        for pattern, new in _RENAMED:
            name = pattern.sub(new, name)
        renamed[name] = value
    return renamed


def merge_lora(state: Mapping[str, Tensor], scale: float | None, scorer: str) -> dict[str, Tensor]:
    """Return the weights with every adapter added: W + scale * B A."""
    merged = {name: value for name, value in state.items() if ".lora_" not in name}
    for name, down in state.items():
        if not name.endswith(".lora_A.weight"):
            continue
        if scale is None:
            raise MissingPartError(f"{scorer}: {name} is a LoRA, but its scale is not known.")
        stem = name.removesuffix(".lora_A.weight")
        weight, up = merged[f"{stem}.weight"], state[f"{stem}.lora_B.weight"]
        delta = scale * (up.float() @ down.float())
        merged[f"{stem}.weight"] = (weight.float() + delta).to(weight.dtype)
    return merged


def build_head(state: Mapping[str, Tensor], scorer: str) -> nn.Module:
    """Return the head that the weights describe: linear layers in order, ReLU between them."""
    stems = sorted({name.rsplit(".", 1)[0] for name in state}, key=lambda s: (len(s), s))
    if not stems or any(re.fullmatch(r"rm_head(\.\d+)?", stem) is None for stem in stems):
        raise MissingPartError(
            f"{scorer}: no head as expected: rm_head.weight, or rm_head.0, rm_head.3, ... of "
            f"linear layers, got {', '.join(stems) or 'nothing'}. Is this a reward model?"
        )
    layers: list[nn.Module] = []
    for stem in stems:
        weight, bias = state[f"{stem}.weight"], state.get(f"{stem}.bias")
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        layer.weight.data.copy_(weight)
        if bias is not None:
            layer.bias.data.copy_(bias)
        layers += [nn.ReLU(), layer] if layers else [layer]
    return nn.Sequential(*layers)


def read_question(folder: Path, tokens: Sequence[str], *, scorer: str, source: str) -> str:
    """Return `prompt.txt`, the words the model was trained with; they belong to its weights.

    Args:
        source: where the public code has them, for the error.
    """
    file = need_file(folder, "prompt.txt", scorer=scorer, what=f"the question, as {source} has it")
    text = file.read_text()
    for part in ("{prompt}", *tokens):
        if text.count(part) != 1:
            raise MissingPartError(
                f"{scorer}: {file}: expected {part} exactly once, got {text.count(part)}. "
                f"Write it as {source} has it, with {{prompt}} where the user's text goes."
            )
    return text


def _base_weights(base: Path, scorer: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    files = sorted(base.glob("*.safetensors"))
    if not files:
        need_file(base, "model.safetensors", scorer=scorer, what="the weights under the adapter")
    weights: dict[str, Tensor] = {}
    for file in files:
        weights.update(load_file(file))
    return {k: v for k, v in rename(weights).items() if not k.startswith("lm_head.")}
