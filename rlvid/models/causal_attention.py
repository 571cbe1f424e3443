"""Attention processors that make diffusers' Wan transformer block-causal; `causal_wan` binds them.

What one forward needs to know travels as an argument, in the place of the rotary table and of the
text states that the transformer hands to every block, not as state of a processor: so a block that
gradient checkpointing runs again during backward sees what it saw first. Without a plan the
processors do what diffusers' own do, bit for bit.

Letters: B batch, S tokens of the sequence, L text tokens, A heads, D size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlvid.models.causal_layout import Positions
from rlvid.models.causal_rotary import Rotary

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one layer, each [B, tokens, A, D]."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionPlan:
    """The self-attention of one forward.

    The pool of a layer is its stored blocks, then the blocks of the sequence itself.
    """

    tokens_per_block: int
    visible: tuple[tuple[int, ...], ...]
    """For each block of the sequence the indices of the pool that it attends to, itself last."""
    positions: Positions
    rotary: Rotary
    """"absolute": of the sequence's tokens. "window": of the longest run of visible blocks."""
    stored: tuple[tuple[KeysValues, ...], ...] = ()
    """Per layer the blocks of the cache, oldest first; empty without a cache."""
    record: dict[int, KeysValues] | None = None
    """Where layers leave the keys and values of the sequence, by layer; None to keep none."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredPrompt:
    """Embedded text with a store for each layer's keys and values of it, filled at first use."""

    states: Tensor
    """[B, L, width]."""
    layers: dict[int, KeysValues]


class _Processor:
    """What both have in common: the place of a layer, and the processor that was there before."""

    def __init__(self, layer: int, ordinary: Any) -> None:
        self.layer = layer
        self.ordinary = ordinary

    @property
    def _attention_backend(self) -> Any:
        """diffusers' name: `set_attention_backend` reads and writes it on every processor."""
        return self.ordinary._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.ordinary._attention_backend = backend

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        mixed: Tensor = dispatch_attention_fn(
            query, keys, values, dropout_p=0.0, is_causal=False, backend=self._attention_backend
        )
        return mixed.type_as(query)


class BlockCausalAttention(_Processor):
    """Self-attention in which each block attends to what its plan lets it see.

    One call of the kernel per block, over the keys it sees: the past cannot depend on the future
    even by rounding, flash kernels apply (they take no mask), and neither a mask of S * S nor the
    hidden half of the scores is ever made.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: AttentionPlan | tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        if not isinstance(rotary_emb, AttentionPlan):
            ordinary: Tensor = self.ordinary(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
            )
            return ordinary
        plan = rotary_emb
        query = _heads(attn, attn.norm_q(attn.to_q(hidden_states)))
        key = _heads(attn, attn.norm_k(attn.to_k(hidden_states)))
        value = _heads(attn, attn.to_v(hidden_states))
        if plan.positions == "absolute":
            query, key = plan.rotary.rotate(query), plan.rotary.rotate(key)
        if plan.record is not None:
            plan.record[self.layer] = (key, value)
        return _project(attn, self._attend_blocks(plan, query, key, value))

    def _attend_blocks(
        self, plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        tokens = plan.tokens_per_block
        stored = plan.stored[self.layer] if plan.stored else ()
        mixed = []
        for queries, seen in zip(query.split(tokens, dim=1), plan.visible, strict=True):
            keys = _gather([keys for keys, _ in stored], key, seen, tokens)
            values = _gather([values for _, values in stored], value, seen, tokens)
            if plan.positions == "window":
                end = len(seen) * tokens
                keys = plan.rotary.tokens(0, end).rotate(keys)
                queries = plan.rotary.tokens(end - tokens, end).rotate(queries)
            mixed.append(self._attend(queries, keys, values))
        return torch.cat(mixed, dim=1)


class StoredPromptAttention(_Processor):
    """Cross-attention that projects the prompt once per layer when it gets a `StoredPrompt`."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: StoredPrompt | Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        if not isinstance(encoder_hidden_states, StoredPrompt):
            ordinary: Tensor = self.ordinary(
                attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb
            )
            return ordinary
        prompt = encoder_hidden_states
        if self.layer not in prompt.layers:
            prompt.layers[self.layer] = (
                _heads(attn, attn.norm_k(attn.to_k(prompt.states))),
                _heads(attn, attn.to_v(prompt.states)),
            )
        query = _heads(attn, attn.norm_q(attn.to_q(hidden_states)))
        return _project(attn, self._attend(query, *prompt.layers[self.layer]))


def bind_processors(transformer: nn.Module) -> Any:
    """Give every layer of a Wan transformer, wrapped or not, the processors above.

    A second call is harmless. Returns the WanTransformer3DModel itself.

    Raises:
        ValueError: there is none in it, it attends to an image, or it runs context-parallel.
    """
    from diffusers import WanTransformer3DModel

    wan: Any = next(
        (m for m in transformer.modules() if isinstance(m, WanTransformer3DModel)), None
    )
    if wan is None:
        raise ValueError(
            f"causal: {type(transformer).__name__} holds no WanTransformer3DModel: expected the "
            "transformer of a Wan pipeline."
        )
    if wan.config.added_kv_proj_dim is not None:
        raise ValueError(
            "causal: the transformer attends to an image (added_kv_proj_dim): expected a "
            "text-to-video one."
        )
    for layer, block in enumerate(wan.blocks):
        for attention, processor in (
            (block.attn1, BlockCausalAttention),
            (block.attn2, StoredPromptAttention),
        ):
            if isinstance(attention.processor, processor):
                continue
            if attention.processor._parallel_config is not None:
                raise ValueError(
                    "causal: the transformer runs context-parallel, in which a device holds part of"
                    " every block: expected one that is whole. Load it without."
                )
            attention.set_processor(processor(layer, attention.processor))
    return wan


def _heads(attn: Any, states: Tensor) -> Tensor:
    """[B, S, A * D] -> [B, S, A, D]."""
    split: Tensor = states.unflatten(2, (attn.heads, -1))
    return split


def _project(attn: Any, mixed: Tensor) -> Tensor:
    """[B, S, A, D] -> [B, S, width]."""
    projected: Tensor = attn.to_out[1](attn.to_out[0](mixed.flatten(2)))
    return projected


def _gather(stored: Sequence[Tensor], own: Tensor, seen: tuple[int, ...], tokens: int) -> Tensor:
    """Return the seen blocks of the pool side by side; a view where they lie so in `own`."""
    first = seen[0] - len(stored)
    if first >= 0 and seen[-1] - seen[0] == len(seen) - 1:
        return own[:, first * tokens : (first + len(seen)) * tokens]
    pool = (*stored, *own.split(tokens, dim=1))
    return torch.cat([pool[index] for index in seen], dim=1)
