"""Builds the tiny vision-language model from nothing: tokenizer, chat template, processor, model.

Every part is transformers' own class with random, seeded weights, in the layout of a Qwen2.5-VL
checkpoint, so that vLLM serves the folder like any other. It is taught in
`rlvid.reward_models.tiny_judge`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Ids 0 to 7."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif part['type'] == 'video' or 'video' in part -%}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{%- elif 'text' in part -%}{{- part['text'] -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""Qwen's chat format; "image_url" is what an OpenAI request calls an image. Line breaks are in
expressions: Jinja drops those of the template's own text."""

PROMPT_HEAD = "<|im_start|>user\n"
PROMPT_TAIL = "<|im_end|>\n<|im_start|>assistant\n"
"""What the template puts before the first part and after the last of one user message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VlmSize:
    """How large the parts are; the defaults are the shipped model."""

    patch: int = 8
    """Pixels. An image token covers 2 x 2 patches."""
    vision_dim: int = 128
    vision_depth: int = 4
    vision_ffn: int = 256
    text_dim: int = 192
    text_layers: int = 4
    text_ffn: int = 384
    head_dim: int = 32
    """Of vision and text; the smallest that vLLM's CPU attention takes."""
    num_key_value_heads: int = 2


def build_vlm_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer in which every word of `texts` is one token.

    Any other text still has tokens, down to single bytes. The texts are sorted first, so the
    vocabulary does not depend on their order.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    corpus = [*sorted(set(texts)), "Yes", "No", "user", "assistant", "system", "\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=4096,
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
        },
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_vlm(
    tokenizer: PreTrainedTokenizerFast, *, size: VlmSize | None = None, seed: int = 0
) -> Qwen2_5_VLForConditionalGeneration:
    """Return the untrained model for this vocabulary; the same arguments give the same weights.

    Every vision block attends to the whole image: windows save time on large images only.
    """
    size = size or VlmSize()
    end, stop = SPECIAL_TOKENS.index("<|endoftext|>"), SPECIAL_TOKENS.index("<|im_end|>")
    half = size.head_dim // 2
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": size.text_dim,
            "intermediate_size": size.text_ffn,
            "num_hidden_layers": size.text_layers,
            "num_attention_heads": size.text_dim // size.head_dim,
            "num_key_value_heads": size.num_key_value_heads,
            "max_position_embeddings": 4096,
            "bos_token_id": end,
            "eos_token_id": stop,
            "pad_token_id": end,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8],
            },
        },
        vision_config={
            "depth": size.vision_depth,
            "hidden_size": size.vision_dim,
            "out_hidden_size": size.text_dim,
            "intermediate_size": size.vision_ffn,
            "num_heads": size.vision_dim // size.head_dim,
            "patch_size": size.patch,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "in_channels": 3,
            "window_size": 8 * size.patch,
            "fullatt_block_indexes": list(range(size.vision_depth)),
            "tokens_per_second": 2,
        },
        image_token_id=SPECIAL_TOKENS.index("<|image_pad|>"),
        video_token_id=SPECIAL_TOKENS.index("<|video_pad|>"),
        vision_start_token_id=SPECIAL_TOKENS.index("<|vision_start|>"),
        vision_end_token_id=SPECIAL_TOKENS.index("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config).float()
    model.generation_config.eos_token_id = stop
    model.generation_config.pad_token_id = end
    return model


def save_vlm(
    folder: Path, model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write a checkpoint folder that transformers and vLLM load."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    patch = model.config.vision_config.patch_size
    names = {
        "preprocessor_config.json": {"image_processor_type": "Qwen2VLImageProcessor"},
        "video_preprocessor_config.json": {"video_processor_type": "Qwen2VLVideoProcessor"},
    }
    for name, kind in names.items():
        (folder / name).write_text(json.dumps(_pixels(patch, kind), indent=1) + "\n")
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "Qwen2_5_VLProcessor"}) + "\n"
    )


def _pixels(patch: int, kind: dict[str, str]) -> dict[str, object]:
    """How pixels become patches. Written by hand: transformers' class would need torchvision."""
    token = (2 * patch) ** 2
    return {
        **kind,
        "processor_class": "Qwen2_5_VLProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 4 * token, "longest_edge": 256 * token},
    }
