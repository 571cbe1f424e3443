"""Random models of the real classes, saved as their public folders are, small enough for a test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    Owlv2Config,
    Owlv2ForObjectDetection,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
)

from rlvid.data.tiny_world.grammar import all_facts, caption

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT = (
    "{% for m in messages %}{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}"
    "{% else %}<|vision_start|><|{{ c.type }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endfor %}"
)


def tokenizer(special: Sequence[str] = (), **settings: object) -> PreTrainedTokenizerFast:
    """Whole words of the tiny world."""
    words = sorted({word for facts in all_facts() for word in caption(facts).split()})
    vocabulary = {word: n for n, word in enumerate(("<pad>", "<unk>", "<end>", *special, *words))}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=list(special),
        **settings,
    )


def save_clip(folder: Path, kind: str) -> Path:
    """A CLIP or SigLIP of one layer and 16 wide."""
    torch.manual_seed(0)
    words = tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes["num_attention_heads"] = 2
    text = {**sizes, "vocab_size": len(words), "max_position_embeddings": 16}
    text |= {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 2, "projection_size": 16}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    if kind == "clip":
        clip = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        CLIPModel(clip).save_pretrained(folder)
    else:
        SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    words.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    pictures = {"image_processor_type": "SiglipImageProcessor", "size": size}
    if kind == "clip":
        pictures = {"image_processor_type": "CLIPImageProcessor", "size": size, "crop_size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    return folder


def save_owlv2(folder: Path) -> Path:
    """An OWLv2 of one layer and 16 wide on 4 patches."""
    torch.manual_seed(0)
    words = tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes["num_attention_heads"] = 2
    config = Owlv2Config(
        text_config={**sizes, "vocab_size": len(words), "max_position_embeddings": 16},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def save_qwen_base(folder: Path, *, patch_size: int) -> Qwen2VLForConditionalGeneration:
    """A Qwen2-VL of two layers and 16 wide with its processor; returns the model."""
    torch.manual_seed(0)
    words = tokenizer(VISION_TOKENS, chat_template=CHAT)
    ids = {f"{kind}_token_id": words.convert_tokens_to_ids(f"<|{kind}_pad|>") for kind in KINDS}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(words) + 8, "hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]
            },
        },
        vision_config={
            "depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 1,
            "patch_size": patch_size,
        },
        vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|vision_end|>"),
        **ids,
    )  # fmt: skip
    model = Qwen2VLForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    pictures = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": patch_size}
    videos = {"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": patch_size}
    for name, settings in {"preprocessor": pictures, "video_preprocessor": videos}.items():
        both = {**settings, "processor_class": "Qwen2VLProcessor"}
        (folder / f"{name}_config.json").write_text(json.dumps(both))
    (folder / "processor_config.json").write_text('{"processor_class": "Qwen2VLProcessor"}')
    return model


KINDS = ("image", "video")


def save_hpsv3(folder: Path) -> Path:
    """The folder that the scorer wants, with the ranknet head at width 8 and 4."""
    model = save_qwen_base(folder, patch_size=14)
    head = {
        "rm_head.0.weight": torch.randn(8, 16), "rm_head.0.bias": torch.randn(8),
        "rm_head.3.weight": torch.randn(4, 8), "rm_head.3.bias": torch.randn(4),
        "rm_head.5.weight": torch.randn(2, 4), "rm_head.5.bias": torch.randn(2),
    }  # fmt: skip
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file({**state, **head}, folder / "HPSv3.safetensors")
    (folder / "prompt.txt").write_text("the ball {prompt} while <|Reward|>")
    return folder


def save_video_align(folder: Path, *, adapter: bool) -> Path:
    """The folder that the scorer wants, as a full checkpoint or as an adapter over the base."""
    model = save_qwen_base(folder, patch_size=4)
    place = folder / "checkpoint-7"
    place.mkdir()
    head = {"base_model.model.rm_head.weight": torch.randn(1, 16)}
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    if adapter:
        save_file(
            {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up},
            place / "adapter_model.safetensors",
        )
        torch.save(head, place / "non_lora_state_dict.pth")
    else:
        state = {}
        for name, value in model.state_dict().items():
            older = name.replace("model.language_model.", "model.").replace(
                "model.visual", "visual"
            )
            older = older.replace(
                "layers.0.self_attn.q_proj.", "layers.0.self_attn.q_proj.base_layer."
            )
            state[f"base_model.model.{older}"] = value
        lora = {f"{stem}.lora_A.default.weight": down, f"{stem}.lora_B.default.weight": up}
        torch.save({**state, **head, **lora}, place / "model.pth")
    norms = {f"{name}_{what}": 0.5 for name in ("VQ", "MQ", "TA") for what in ("mean", "std")}
    settings = {
        "data_config": {"fps": 2.0, "max_frame_pixels": 64 * 64},
        "peft_lora_config": {"lora_enable": True, "lora_r": 2, "lora_alpha": 4},
        "inference_config": norms,
    }
    (folder / "model_config.json").write_text(json.dumps(settings))
    question = "ball <|VQ_reward|> box <|MQ_reward|> the {prompt} <|TA_reward|>"
    (folder / "prompt.txt").write_text(question)
    return folder
