"""HunyuanVideo-1.5 text-to-video models (arXiv:2511.18870), in HunyuanVideo15Pipeline's folder.

Timesteps are 1000 sigma and the transformer predicts the velocity. A prompt is read by Qwen2.5-VL
behind a system message, the states of which are cut off; what stands in quotation marks is read by
ByT5 too, letter by letter. The transformer is one for text and image to video: with a text alone
its channels for a picture are zero, and so are the picture's own tokens, which it masks.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.models.input_shapes import InputShapes
from rlvid.models.native import NativeRange
from rlvid.models.pipeline_model import PipelineModel
from rlvid.models.scheduler_sigmas import flow_match_sigmas, linear_sigmas
from rlvid.models.video_vae import VideoVae

NUM_TRAIN_TIMESTEPS = 1000
"""timestep = 1000 * sigma."""


class HunyuanVideo15Vae(VideoVae):
    """diffusers' AutoencoderKLHunyuanVideo15, one clip at a time.

    For several, the mask of its attention has the wrong shape (huggingface/diffusers pull 13133).
    """

    def _decode(self, latents: Tensor) -> Tensor:
        decode = super()._decode
        return torch.cat([decode(clip) for clip in latents.split(1)])

    def _encode(self, pixels: Tensor) -> Tensor:
        encode = super()._encode
        return torch.cat([encode(clip) for clip in pixels.split(1)])


class HunyuanVideo15Model(PipelineModel):
    """A HunyuanVideo15Pipeline as a `VideoModel`.

    The pipeline guides with what its folder's `guider` says, classifier-free guidance of scale 6 in
    the released folders; rlvid guides by its own scale and leaves the guider alone. Sample and
    train folders that are distilled from guidance at scale 1.

    The pipeline of diffusers 0.42 has no `load_lora_weights`; a trained LoRA is read by its
    transformer's `load_lora_adapter(folder, weight_name="pytorch_lora_weights.safetensors")`.
    """

    PIPELINE = "HunyuanVideo15Pipeline"
    PARTS: ClassVar[tuple[str, ...]] = (
        *PipelineModel.PARTS,
        "text_encoder_2",
        "tokenizer_2",
        "guider",
    )
    ENCODERS: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    VAE = "AutoencoderKLHunyuanVideo15"
    NATIVE: ClassVar[NativeRange] = NativeRange(
        num_frames=(None, 241), height_width=((480, 848), (720, 1280)), fps=24.0
    )
    """480p or 720p by the folder, at 16:9; the longest clips of the report, 10 s, at the 24 frames
    a second of Tencent's README. 121 frames are the pipeline's default."""

    def __init__(
        self, pipeline: Any, *, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """Lower the pipeline's text lengths, 1000 and 256 tokens, to what its tokenizers take."""
        super().__init__(pipeline, device=device, dtype=dtype)
        self._patch_size: int = pipeline.transformer.config.patch_size
        self._image_tokens = (
            pipeline.vision_num_semantic_tokens,
            pipeline.transformer.config.image_embed_dim,
        )
        pipeline.tokenizer_max_length = min(
            pipeline.tokenizer.model_max_length - pipeline.prompt_template_encode_start_idx,
            pipeline.tokenizer_max_length,
        )
        pipeline.tokenizer_2_max_length = min(
            pipeline.tokenizer_2.model_max_length, pipeline.tokenizer_2_max_length
        )

    @classmethod
    def open_vae(cls, vae: Any, device: torch.device) -> HunyuanVideo15Vae:
        return HunyuanVideo15Vae(vae, device=device, scaling_factor=vae.config.scaling_factor)

    def encode_prompt(self, text: str) -> Condition:
        """Return prompt_embeds [1, L, D] and glyph_embeds [1, M, E] with a mask of each, float32.

        Of a text without quotation marks the glyphs are zero, and masked.
        """
        embeds, mask, glyphs, glyph_mask = self._pipeline.encode_prompt(
            text, device=self.text_device, dtype=self._dtype
        )
        return Condition(
            {
                "prompt_embeds": embeds.float(),
                "prompt_mask": mask.float(),
                "glyph_embeds": glyphs.float(),
                "glyph_mask": glyph_mask.float(),
            }
        )

    def input_shapes(self, latent_shape: tuple[int, int, int, int]) -> InputShapes:
        pipeline, config = self._pipeline, self._pipeline.transformer.config
        length, glyphs = pipeline.tokenizer_max_length, pipeline.tokenizer_2_max_length
        return InputShapes(
            condition={
                "prompt_embeds": (length, config.text_embed_dim),
                "prompt_mask": (length,),
                "glyph_embeds": (glyphs, config.text_embed_2_dim),
                "glyph_mask": (glyphs,),
            },
            text_tokens={
                "text_encoder": pipeline.prompt_template_encode_start_idx + length,
                "text_encoder_2": glyphs,
            },
        )

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the velocity [B, C, F, H, W] float32 at `sigma` [B]; differentiable.

        The transformer takes timesteps in its own dtype: in bfloat16 they are rounded, as they are
        in the pipeline.
        """
        state = latents.to(self._dtype)
        picture, tokens = self._picture(latents, condition)
        velocity: Tensor = self.transformer(
            hidden_states=torch.cat([state, picture.to(self._dtype)], dim=1),
            timestep=(sigma.float() * NUM_TRAIN_TIMESTEPS).to(self._dtype),
            encoder_hidden_states=condition["prompt_embeds"].to(self._dtype),
            encoder_attention_mask=condition["prompt_mask"].to(self._dtype),
            encoder_hidden_states_2=condition["glyph_embeds"].to(self._dtype),
            encoder_attention_mask_2=condition["glyph_mask"].to(self._dtype),
            image_embeds=tokens.to(self._dtype),
            return_dict=False,
        )[0]
        return velocity.float()

    def _picture(self, latents: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Return a picture's channels [B, C + 1, F, H, W] and its tokens [B, N, D]; zero for none.

        The channels are its latents and a mask of the frames that are given.
        """
        rows, channels, *size = latents.shape
        channels_of_none = latents.new_zeros(rows, channels + 1, *size)
        return channels_of_none, latents.new_zeros(rows, *self._image_tokens)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return (C, F, H, W) for a clip of that size; ValueError when it does not divide."""
        patch = (self._patch_size, self._patch_size)
        return self._vae.clip_shape(num_frames, height, width, patch=patch)

    def sigmas(self, num_steps: int, num_frames: int, height: int, width: int) -> tuple[float, ...]:
        """Return the num_steps + 1 noise levels of HunyuanVideo15Pipeline, the same for any clip.

        The shift is the folder's; Tencent's README has 5 for 480p and 9 for 720p.
        """
        return flow_match_sigmas(self._pipeline.scheduler, linear_sigmas(num_steps))
