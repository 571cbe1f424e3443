"""Where the video tokens of each diffusers transformer come in and meet: one row a class.

What is done there is `rlvid.models.sequence_parallel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LATENTS = "hidden_states"
"""What every diffusers transformer calls its latents, and its attention the video tokens."""
LAST = "proj_out"
"""The last module on tokens, of every plan: [B, N, C] comes out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPlan:
    """Where video tokens come into a transformer and where they meet.

    Modules are named by regular expressions; "" is the transformer itself.
    """

    attention: str
    """Modules in which video tokens attend to each other."""
    inputs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Modules to argument to its dimension of tokens. A tensor without that dimension stays."""
    outputs: Mapping[str, int] = field(default_factory=dict)
    """Modules to the dimension of tokens in their output, or in each of several."""
    text_first: bool = False
    """Text that attends with the video stands before it."""


PLANS: dict[str, TokenPlan] = {
    "CogVideoXTransformer3DModel": TokenPlan(
        attention=r"transformer_blocks\.\d+\.attn1",
        inputs={"": {"image_rotary_emb": 0}, r"transformer_blocks\.0": {LATENTS: 1}},
        text_first=True,
    ),
    "CosmosTransformer3DModel": TokenPlan(
        attention=r"transformer_blocks\.\d+\.attn1",
        inputs={
            r"transformer_blocks\.0": {LATENTS: 1},
            r"transformer_blocks\.\d+|norm_out": {"embedded_timestep": 1, "temb": 1},
            r"transformer_blocks\.\d+": {"extra_pos_emb": 1},
        },
        outputs={"rope": 0},
    ),
    "HunyuanVideoTransformer3DModel": TokenPlan(
        attention=r"(single_)?transformer_blocks\.\d+\.attn",
        outputs={"x_embedder": 1, "rope": 0},
    ),
    "HunyuanVideo15Transformer3DModel": TokenPlan(
        attention=r"transformer_blocks\.\d+\.attn",
        outputs={"x_embedder": 1, "rope": 0},
    ),
    "LTXVideoTransformer3DModel": TokenPlan(
        attention=r"transformer_blocks\.\d+\.attn1",
        outputs={"proj_in": 1, "rope": 1},
    ),
    # Its rotary embedding is [B, N, D], or [B, H, N, D / 2] where the configuration says "split".
    "LTX2VideoTransformer3DModel": TokenPlan(
        attention=r"transformer_blocks\.\d+\.attn1",
        outputs={"proj_in": 1, "rope": -2},
    ),
    "MochiTransformer3DModel": TokenPlan(
        attention=r"transformer_blocks\.\d+\.attn1",
        inputs={r"transformer_blocks\.0": {LATENTS: 1}},
        outputs={"rope": 0},
    ),
    "SD3Transformer2DModel": TokenPlan(
        attention=r"transformer_blocks\.\d+\.attn2?",
        outputs={"pos_embed": 1},
    ),
    "WanTransformer3DModel": TokenPlan(
        attention=r"blocks\.\d+\.attn1",
        inputs={"": {"timestep": 1}, r"blocks\.0": {LATENTS: 1}},
        outputs={"rope": 1},
    ),
    "WanVACETransformer3DModel": TokenPlan(
        attention=r"(vace_)?blocks\.\d+\.attn1",
        inputs={
            r"vace_blocks\.0": {LATENTS: 1, "control_hidden_states": 1},
            r"blocks\.0": {LATENTS: 1},
        },
        outputs={"rope": 1},
    ),
}
"""Class of diffusers to its plan; each is held against one rank by tests/numerics."""
