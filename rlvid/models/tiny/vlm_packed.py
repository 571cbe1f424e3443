"""A fast forward of the tiny vision-language model: many questions about one clip in one pass.

The vision tokens of a clip come once; after them follow its questions, each of which sees the clip
and itself but no other question, at the rotary positions it would have alone. The weights are the
model's own, and the logits are those of its plain forward, to rounding.
Letters: B sequences, I images of each, N patches of an image, M = N / 4 image tokens, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AttentionInterface,
    PreTrainedTokenizerFast,
    Qwen2_5_VLForConditionalGeneration,
)

from rlvid.models.tiny.vlm_build import PROMPT_HEAD, PROMPT_TAIL

MERGE = 2
IGNORED = -100
ATTENTION = "rlvid_packed"
"""Name under which transformers finds the attention of a packed batch."""


def patchify(images: Tensor, patch: int) -> Tensor:
    """Return [..., N, C * 2 * patch * patch] of images [..., C, H, W] as the processor orders them.

    Patches of one image token are neighbours in the order; each patch holds its pixels twice, as a
    still image fills both frames of a temporal patch.
    """
    *lead, channels, height, width = images.shape
    rows, columns = height // patch // MERGE, width // patch // MERGE
    grid = images.reshape(-1, channels, rows, MERGE, patch, columns, MERGE, patch)
    ordered = grid.permute(0, 2, 5, 3, 6, 1, 4, 7)[:, :, :, :, :, :, None]
    twice = ordered.expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)
    count = rows * columns * MERGE * MERGE
    return twice.reshape(*lead, count, channels * 2 * patch * patch)


@lru_cache(maxsize=8)
def _patch_places(rows: int, columns: int) -> Tensor:
    """Return (row, column) [N, 2] of each patch of an image, in the processor's order."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    blocks = (rows // MERGE, MERGE, columns // MERGE, MERGE)
    places = [p.reshape(blocks).transpose(1, 2).flatten() for p in (row, column)]
    return torch.stack(places, dim=1)


def vision_tokens(model: Qwen2_5_VLForConditionalGeneration, images: Tensor) -> Tensor:
    """Return the image tokens [B, M, D] of images [B, C, H, W] in [-1, 1].

    Every block must attend to the whole image, as `vlm_build` sets it up; windows are not done.
    """
    visual = model.model.visual
    patch = visual.patch_size
    batch, _, height, width = images.shape
    patches = patchify(images, patch)
    weight = visual.patch_embed.proj.weight
    hidden = functional.linear(patches, weight.flatten(1)).float()
    places = _patch_places(height // patch, width // patch)
    cos, sin = visual.rotary_pos_emb(hidden, places)
    heads = visual.config.num_heads
    for block in visual.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(hidden)).unflatten(-1, (3, heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        mixed = attend(query, key, value)
        hidden = hidden + attention.proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.norm2(hidden))
    merger = visual.merger
    grouped = merger.ln_q(hidden).reshape(batch, -1, merger.hidden_size)
    tokens: Tensor = merger.mlp(grouped)
    return tokens


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(d) + bias) v, all [B, heads, L, d], in the dtype of `value`.

    Twice as fast in bfloat16 on a CPU as torch's fused attention, forward and backward, at the few
    tokens and small heads there are here.
    """
    with torch.autocast("cpu", enabled=False):
        query, key = query.to(value.dtype), key.to(value.dtype)
        scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(2, 3))
        if bias is not None:
            scores = scores + bias
        return torch.matmul(scores.softmax(dim=-1), value)


def _packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **_: object
) -> tuple[Tensor, None]:
    """`attend` as transformers calls it, with fewer key heads than query heads."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    return attend(query, key, value, mask.to(value.dtype)).transpose(1, 2), None


AttentionInterface.register(ATTENTION, _packed_attention)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = states.chunk(2, dim=-1)
    turned = torch.cat((-two, one), dim=-1)
    return (states * cos + turned * sin).to(states.dtype)


class Asked(NamedTuple):
    """One question of a packed sequence."""

    text: str
    answer: str = ""
    """Empty for a question that is only asked: `Packed.first` says where to read the logits."""
    echoed: bool = False
    """Label the words of the question as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Token tensors of B sequences, each with the questions of its clip."""

    input_ids: Tensor
    """[B, L] int64."""
    positions: Tensor
    """[3, B, L] rotary positions in time, height and width."""
    mask: Tensor
    """[B, 1, L, L] bool: may a row's token see a column's?"""
    labels: Tensor
    """[B, L] the token to be said next, or `IGNORED`."""
    echoes: Tensor
    """[B, L] the same for the words of echoed questions, apart from the labels."""
    first: Tensor
    """[B, Q] position whose next token is the first of the answer, -1 where there is none."""


class Packer:
    """Turns questions and answers into `Packed` batches for clips of one shape of images."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        model: Qwen2_5_VLForConditionalGeneration,
        *,
        num_images: int,
        image_size: tuple[int, int],
    ) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}
        side = MERGE * model.config.vision_config.patch_size
        rows, columns = image_size[0] // side, image_size[1] // side
        one_image = "<|vision_start|>" + "<|image_pad|>" * (rows * columns) + "<|vision_end|>"
        self.prefix = self.encode(PROMPT_HEAD + one_image * num_images)
        self.image_token = model.config.image_token_id
        prefix = torch.tensor([self.prefix])
        grid = torch.tensor([[1, rows * MERGE, columns * MERGE]] * num_images)
        kinds = (prefix == self.image_token).int()
        self._positions = model.model.get_rope_index(
            prefix, image_grid_thw=grid, mm_token_type_ids=kinds
        )[0][:, 0]

    def encode(self, text: str) -> list[int]:
        ids = self._ids.get(text)
        if ids is None:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(self._ids) < 50_000:
                self._ids[text] = ids
        return ids

    def pack(self, batch: Sequence[Sequence[Asked]]) -> Packed:
        """Return the tensors of B lists of questions; answers and their end marks are labelled."""
        start = len(self.prefix)
        after = int(self._positions.max()) + 1
        rows = [self._row(questions, start, after) for questions in batch]
        length = max(len(row[0]) for row in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full((len(rows), length), IGNORED)
        echoes = torch.full((len(rows), length), IGNORED)
        owner = torch.full((len(rows), length), -1)
        positions = torch.zeros(3, len(rows), length, dtype=torch.long)
        first = torch.full((len(rows), max(len(q) for q in batch)), -1)
        for index, (tokens, spoken, echoed, owners, places, firsts) in enumerate(rows):
            count = len(tokens)
            echoes[index, :count] = torch.tensor(echoed)
            ids[index, :count] = torch.tensor(tokens)
            labels[index, :count] = torch.tensor(spoken)
            owner[index, :count] = torch.tensor(owners)
            positions[:, index, :start] = self._positions
            positions[:, index, start:count] = torch.tensor(places)
            first[index, : len(firsts)] = torch.tensor(firsts)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        same = owner[:, :, None] == owner[:, None, :]
        mask = causal & (same | (owner == 0)[:, None, :])
        return Packed(
            input_ids=ids,
            positions=positions,
            mask=mask[:, None],
            labels=labels,
            echoes=echoes,
            first=first,
        )

    def _row(
        self, questions: Sequence[Asked], start: int, after: int
    ) -> tuple[list[int], list[int], list[int], list[int], list[int], list[int]]:
        """Return tokens, labels, echoes, owners (0 is the prefix), positions past it, `first`."""
        tokens, labels, echoes = list(self.prefix), [IGNORED] * start, [IGNORED] * start
        owners, places, firsts = [0] * start, list[int](), list[int]()
        for number, (question, answer, echoed) in enumerate(questions, start=1):
            words = self.encode(question)
            asked = [*words, *self.encode(PROMPT_TAIL)]
            said = self.encode(answer) if answer else []
            ended = [*said, self._tokenizer.eos_token_id] if said else []
            firsts.append(len(tokens) + len(asked) - 1)
            tokens += asked + said
            count = len(asked) + len(said)
            labels += [IGNORED] * (len(asked) - 1) + (ended or [IGNORED])
            heard = words[1:] if echoed else []
            echoes += heard + [IGNORED] * (count - len(heard))
            owners += [number] * count
            places += range(after, after + count)
        return tokens, labels, echoes, owners, places, firsts


def packed_hidden(
    model: Qwen2_5_VLForConditionalGeneration, packed: Packed, images: Tensor, image_token: int
) -> tuple[Tensor, Tensor]:
    """Return the last hidden states [B, L, D] and the image tokens [B, I, M, D].

    Args:
        images: [B, I, C, H, W] in [-1, 1].
    """
    batch, count = images.shape[:2]
    seen = vision_tokens(model, images.flatten(0, 1))
    embeds = model.model.language_model.embed_tokens(packed.input_ids)
    places = (packed.input_ids == image_token)[..., None]
    embeds = embeds.masked_scatter(places, seen.to(embeds.dtype))
    language = model.model.language_model
    bias = torch.zeros(packed.mask.shape).masked_fill_(~packed.mask, -1e9)
    plain, language.config._attn_implementation = language.config._attn_implementation, ATTENTION
    try:
        hidden = language(
            inputs_embeds=embeds,
            attention_mask={"full_attention": bias},
            position_ids=packed.positions,
            use_cache=False,
        ).last_hidden_state
    finally:
        language.config._attn_implementation = plain
    return hidden, seen.unflatten(0, (batch, count))
