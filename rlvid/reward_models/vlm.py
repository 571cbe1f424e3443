"""A vision-language backbone: hidden states of three reward tokens of a Qwen2-VL or Qwen2.5-VL.

The sequence is: clip, instruction, [VQ], [MQ], prompt, [TA]. Attention is causal, so what VQ and MQ
say cannot depend on the prompt (VideoAlign, arXiv:2501.13918). The one file of this package that
imports transformers and peft. Letters: B clips, T frames, H W pixels, L tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlvid.config.reward_model import BackboneConfig
from rlvid.reward_models import PARTS

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl")
INSTRUCTION = "Rate the visual quality and the motion quality of the video."
ALIGNMENT = "Rate how well the video shows this text: "
"""Our own wording; VideoAlign's template was not at hand."""
VIDEO = 2
"""What transformers calls a video token in `mm_token_type_ids`."""


class RewardTokens(nn.Module):
    """An embedding with three rows more than its base; only those are trained by `head`.

    The tokenizer knows nothing of them, so no prompt can spell one, and the base's table, which
    may be padded or tied to the output, stays as it is.
    """

    def __init__(self, base: nn.Embedding) -> None:
        super().__init__()
        self.base = base
        # Of the size that the base's own rows have, or the first layers would not notice them.
        scale = float(base.weight.detach().float().std())
        self.rows = nn.Parameter(torch.randn(len(PARTS), base.embedding_dim) * scale)

    def forward(self, ids: Tensor) -> Tensor:
        """[B, L] -> [B, L, D]."""
        first = self.base.num_embeddings
        is_reward = ids >= first
        plain = self.base(ids.masked_fill(is_reward, 0))
        extra = self.rows[(ids - first).clamp(min=0)].to(plain.dtype)
        return torch.where(is_reward[..., None], extra, plain)


class VlmBackbone(nn.Module):
    """A VLM without its language head; see the module."""

    def __init__(self, vlm: Any, processor: Any, *, fps: float, sample_fps: float | None) -> None:
        """`vlm` is transformers' Qwen2VLModel or Qwen2_5_VLModel."""
        super().__init__()
        self.tokens = RewardTokens(vlm.get_input_embeddings())
        vlm.set_input_embeddings(self.tokens)
        self.vlm = vlm
        self._processor = processor
        self._stride = 1 if sample_fps is None else max(1, round(fps / sample_fps))
        self._fps = fps / self._stride

    @property
    def feature_size(self) -> int:
        size: int = self.vlm.config.text_config.hidden_size
        return size

    def forward(self, videos: Tensor, texts: Sequence[str]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] and B prompts -> [B, P, D]."""
        device = self.tokens.rows.device
        pixels = self._pixels(videos)
        config = self.vlm.config
        merge = config.vision_config.spatial_merge_size**2
        num_tokens = [int(grid.prod()) // merge for grid in pixels["video_grid_thw"]]
        rows = [self._ids(text, count) for text, count in zip(texts, num_tokens, strict=True)]
        length = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        more = {}
        if config.model_type == "qwen2_5_vl":
            span = config.vision_config.temporal_patch_size / self._fps
            more["second_per_grid_ts"] = torch.full((len(rows),), span, device=device)
        hidden = self.vlm(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            mm_token_type_ids=(VIDEO * (ids == config.video_token_id)).to(device),
            pixel_values_videos=pixels["pixel_values_videos"].to(device),
            video_grid_thw=pixels["video_grid_thw"].to(device),
            use_cache=False,
            **more,
        ).last_hidden_state
        places = (ids >= self.tokens.base.num_embeddings).nonzero()[:, 1].view(len(rows), -1)
        batch = torch.arange(len(rows), device=device)[:, None]
        features: Tensor = hidden[batch, places.to(device)]
        return features

    def _pixels(self, videos: Tensor) -> Any:
        frames = videos[:, :: self._stride].mul(255.0).round().clamp(0, 255).to(torch.uint8).cpu()
        return self._processor.video_processor(
            videos=list(frames), do_sample_frames=False, return_tensors="pt"
        )

    def _ids(self, text: str, num_video_tokens: int) -> list[int]:
        first, video = self.tokens.base.num_embeddings, self.vlm.config.video_token_id
        vq, mq, ta = range(first, first + len(PARTS))
        return [
            *self._encode("<|im_start|>user\n<|vision_start|>"),
            *[video] * num_video_tokens,
            *self._encode(f"<|vision_end|>{INSTRUCTION}"),
            vq,
            mq,
            *self._encode(ALIGNMENT),
            # A prompt may hold "<|video_pad|>" or the like: split, it is text as any other.
            *self._encode(text, split_special_tokens=True),
            ta,
        ]

    def _encode(self, text: str, *, split_special_tokens: bool = False) -> list[int]:
        ids: list[int] = self._processor.tokenizer(
            text, add_special_tokens=False, split_special_tokens=split_special_tokens
        ).input_ids
        return ids


def vlm_folder(path: str) -> Path:
    """Return the folder of a VLM; "tiny_judge" is the one that ships with rlvid."""
    if path == "tiny_judge":
        from rlvid.models.tiny import vlm_judge_folder

        return vlm_judge_folder()
    return Path(path).expanduser()


def open_vlm_backbone(config: BackboneConfig, *, fps: float, seed: int) -> VlmBackbone:
    """Load a VLM from a local folder and say by `requires_grad` what is trained.

    Args:
        fps: of the clips it will see.
        seed: of the reward tokens and the adapters.

    Raises:
        ValueError: no checkpoint there, or of another family.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    where = "reward_model.backbone.path"
    folder = vlm_folder(config.path)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{where}: no checkpoint at {str(folder)!r}: expected a folder of Qwen2-VL or "
            "Qwen2.5-VL, as save_pretrained writes it. Download one and give its folder."
        )
    kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    if kind not in MODEL_TYPES:
        raise ValueError(
            f"{where}: {str(folder)!r} is a {kind!r}: expected one of {', '.join(MODEL_TYPES)}."
        )
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
    vlm = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, local_files_only=True
    ).model
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    vlm.requires_grad_(config.train == "full")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = VlmBackbone(vlm, processor, fps=fps, sample_fps=config.sample_fps)
        if config.train == "lora":
            _add_lora(vlm, config)
    return backbone


def _add_lora(vlm: nn.Module, config: BackboneConfig) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    lora = config.lora
    inject_adapter_in_model(
        LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.target_modules)),
        vlm,
    )
    # peft freezes everything it does not add, the reward tokens included.
    for name, parameter in vlm.named_parameters():
        if name.endswith("embed_tokens.rows"):
            parameter.requires_grad_(True)
