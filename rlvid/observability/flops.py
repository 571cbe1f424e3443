r"""Matrix-product FLOPs of a Wan transformer: of a forward, of learning from it, of what is run.

Letters: N video tokens of a clip, L text tokens, d width (heads * head size), f width of the MLP,
t width of the text encoder, q width of the sinusoidal time embedding, p numbers in a patch
(channels * patch volume). A product of [m, k] and [k, n] counts 2 m k n. Per row (one latent, one
guidance branch) and per layer:

    linear      2 N d (4 d + 2 d + 2 f)    self-attention q, k, v, out; cross-attention q, out; MLP
    text        2 L d (2 d)                cross-attention k, v
    attention   4 N N d + 4 N L d          scores and weighted sum of self- and cross-attention

Where the transformer sees pictures (image-to-video), with I tokens of them, i wide:

    text        + 2 I d (2 d)              their k, v
    attention   + 4 N I d

and once per row

    entry       2 N p d + 2 L (t d + d d) + 2 (q d + d d + 6 d d)    patches, text, time
                + 2 I (i i + i d)                                    pictures
    head        2 N d p

In the entry p counts the channels of given frames as well.

Norms, rotary positions, softmax and the LoRA matrices are left out (a LoRA of rank 16 adds less
than one percent at the 1.3B size).

*Learning* is what the mathematics asks for, a forward and a backward pass, however it is run; model
FLOPs utilisation counts these (PaLM, arXiv:2204.02311, appendix B). A backward pass costs a product
for the gradient of a matrix's input and one for its own, an attention product two. With a frozen
base (LoRA) the matrices' own are not needed, and nothing flows back below the cross-attention's
text and the patches:

    full        3 linear + 3 text + 3 attention + 3 entry + 3 head
    frozen      2 linear + 1 text + 3 attention + 1 entry + 2 head

(full counts the gradient of the entry's inputs, which nobody asks for: under 0.1 % at 1.3B.)

*Run* is what the machine is asked for with activation checkpointing and a frozen base: each layer
forward twice, backward once:

    trained     3 linear + 2 text + 4 attention + 1 entry + 2 head
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WanSize:
    """The numbers that a `WanTransformer3DModel` and its FLOPs follow from."""

    name: str
    num_heads: int
    head_dim: int
    num_layers: int
    ffn_dim: int
    text_dim: int
    text_tokens: int
    freq_dim: int
    channels: int = 16
    """Of the latents."""
    patch_size: tuple[int, int, int] = (1, 2, 2)
    given_channels: int = 0
    """Of given frames and their mask, beside the latents."""
    image_tokens: int = 0
    """Of all pictures that the transformer sees."""
    image_dim: int = 0

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def patch_numbers(self) -> int:
        return self.channels * math.prod(self.patch_size)

    @property
    def entry_numbers(self) -> int:
        """Numbers in a patch as the transformer is given it."""
        return (self.channels + self.given_channels) * math.prod(self.patch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFlops:
    """FLOPs of one row, all layers together; parts as in the module docstring."""

    linear: int
    text: int
    attention: int
    entry: int
    head: int

    @property
    def forward(self) -> int:
        return self.linear + self.text + self.attention + self.entry + self.head

    @property
    def trained(self) -> int:
        """Forward, second forward of the layers, backward; base frozen."""
        layers = 3 * self.linear + 2 * self.text + 4 * self.attention
        return layers + self.entry + 2 * self.head

    def learned(self, *, base_is_frozen: bool) -> int:
        """Forward and backward, each once."""
        if base_is_frozen:
            return 2 * (self.linear + self.head) + self.text + 3 * self.attention + self.entry
        return 3 * self.forward


def count_tokens(size: WanSize, shape: tuple[int, int, int, int]) -> int:
    """Return N of latents (C, F, H, W)."""
    return math.prod(n // p for n, p in zip(shape[1:], size.patch_size, strict=True))


def row_flops(size: WanSize, tokens: int) -> RowFlops:
    """Return the FLOPs of a row with `tokens` video tokens; formula in the module docstring."""
    width, text, image = size.width, size.text_tokens, size.image_tokens
    return RowFlops(
        linear=size.num_layers * 2 * tokens * width * (6 * width + 2 * size.ffn_dim),
        text=size.num_layers * 4 * (text + image) * width * width,
        attention=size.num_layers * 4 * tokens * width * (tokens + text + image),
        entry=2 * tokens * size.entry_numbers * width
        + 2 * text * width * (size.text_dim + width)
        + 2 * image * size.image_dim * (size.image_dim + width)
        + 2 * width * (size.freq_dim + 7 * width),
        head=2 * tokens * width * size.patch_numbers,
    )
