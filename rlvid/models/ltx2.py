"""The video of LTX-2 text-to-video-and-audio models (arXiv:2601.03233): LTX2Pipeline's folders.

LTX-2 has a video and an audio stream that attend to each other. rlvid's state is a video, so what
is sampled and trained here is the video stream by itself, with the attention between the two
switched off (`isolate_modalities`), which is how Lightricks' trainer trains without audio. It is
not the video that LTX2Pipeline makes together with sound: that one depends on noisy audio latents,
which are no part of a rollout's state. A LoRA trained so loads into LTX2Pipeline and is sampled
there with sound, which no reward here has seen.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from rlvid.condition import Condition
from rlvid.models.input_shapes import InputShapes
from rlvid.models.ltx import NUM_TRAIN_TIMESTEPS, LtxModel
from rlvid.models.native import NativeRange


class Ltx2Model(LtxModel):
    """An LTX2Pipeline as a `VideoModel` of its video stream.

    Rewards see silent clips. Of the pipeline's guidance only that by the negative prompt is
    rlvid's: by default it also has skip-layer guidance (`stg_scale` 1), guidance by the attention
    between the streams (`modality_scale` 3) and a rescale of 0.7.

    The audio stream is given one token of zeros, and its parameters get no gradient. LoRA targets
    that name the video stream alone are "attn1.to_q", "attn2.to_q" and so on; "to_q" would also
    bind to modules that never learn.
    """

    PIPELINE = "LTX2Pipeline"
    PARTS = (*LtxModel.PARTS, "connectors", "audio_vae", "vocoder")
    ENCODERS = ("text_encoder", "connectors", "audio_vae", "vocoder")
    VAE = "AutoencoderKLLTX2Video"
    NATIVE: ClassVar[NativeRange] = NativeRange(
        num_frames=(None, 481), height_width=((512, 768),), fps=24.0
    )
    """LTX2Pipeline's defaults; 481 frames are the 20 s that it lets a clip be predicted to last."""
    FRAME_RATE = 24.0
    MAX_SEQUENCE_LENGTH = 1024

    def encode_prompt(self, text: str) -> Condition:
        """Return prompt_embeds [1, L, D] and prompt_mask [1, L], behind the video's connector.

        L is `max_sequence_length`, which the connector's learned registers must divide.
        """
        embeds, mask, _, _ = self._pipeline.encode_prompt(
            text,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
            device=self.text_device,
        )
        embeds, _, mask = self._pipeline.connectors(
            embeds, mask, padding_side=self._pipeline.tokenizer.padding_side
        )
        return Condition({"prompt_embeds": embeds.float(), "prompt_mask": mask})

    def input_shapes(self, latent_shape: tuple[int, int, int, int]) -> InputShapes:
        length = self.max_sequence_length
        width = self._pipeline.connectors.video_connector.inner_dim
        return InputShapes(
            condition={"prompt_embeds": (length, width), "prompt_mask": (length,)},
            text_tokens={"text_encoder": length, "connectors": length},
        )

    def velocity(self, latents: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return the velocity [B, C, F, H, W] float32 at `sigma` [B]; differentiable."""
        rows, _, frames, height, width = latents.shape
        hidden_states = latents.flatten(2).transpose(1, 2).to(self._dtype)
        timestep = sigma.float() * NUM_TRAIN_TIMESTEPS
        silent_channels = self._pipeline.transformer.config.audio_in_channels
        silent_text_channels = self._pipeline.connectors.audio_connector.inner_dim
        tokens: Tensor = self.transformer(
            hidden_states=hidden_states,
            audio_hidden_states=hidden_states.new_zeros(rows, 1, silent_channels),
            encoder_hidden_states=condition["prompt_embeds"].to(self._dtype),
            audio_encoder_hidden_states=hidden_states.new_zeros(rows, 1, silent_text_channels),
            timestep=timestep,
            sigma=timestep,  # LTX-2.3 modulates the text by it
            encoder_attention_mask=condition["prompt_mask"],
            num_frames=frames,
            height=height,
            width=width,
            fps=self.FRAME_RATE,
            audio_num_frames=1,
            isolate_modalities=True,
            return_dict=False,
        )[0]
        return tokens.float().transpose(1, 2).reshape(latents.shape)
