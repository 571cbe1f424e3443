"""What ranks that share a clip's tokens tell each other, with the adjoint of every exchange.

Ulysses (arXiv:2309.14509): outside attention a rank has some tokens of all heads, inside it all
tokens of some heads, and one all-to-all changes one for the other.

The loss counts once, although every rank of the group computes it, from the same velocity to the
bit. Under that convention each rank's gradient of a parameter is a part, and the parts *add up* to
the gradient; see `rlvid.models.sequence_parallel`.

Letters: R ranks of the group, B rows, H heads, h = H / R, N video tokens, n = N / R, L text tokens,
D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.functional import scaled_dot_product_attention

Group = dist.ProcessGroup


def own_tokens(tokens: Tensor, dim: int, group: Group) -> Tensor:
    """Return this rank's part of what every rank has: equal parts along `dim`, in order of rank.

    Raises:
        ValueError: they do not divide.
    """
    size, length = group.size(), tokens.shape[dim]
    if length % size:
        raise ValueError(
            f"sequence_parallel: a clip of {length} tokens does not divide among {size} "
            f"ranks: expected a divisor of {length}. Choose one, or another model.num_frames, "
            "height or width"
        )
    return tokens.narrow(dim, group.rank() * (length // size), length // size)


def all_tokens(tokens: Tensor, dim: int, group: Group) -> Tensor:
    """Put the parts of all ranks together, on every rank.

    Its gradient must be the same on all ranks; each takes back its part.
    """
    gathered: Tensor = _Gather.apply(tokens, dim, group)  # type: ignore[no-untyped-call]
    return gathered


def summed_gradient(tensor: Tensor, group: Group) -> Tensor:
    """Return `tensor`, which all ranks have; its gradient is the sum of theirs."""
    same: Tensor = _SummedGradient.apply(tensor, group)  # type: ignore[no-untyped-call]
    return same


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    num_video: int,
    text_first: bool,
    group: Group,
    **settings: Any,
) -> Tensor:
    """Return torch's attention over the tokens of all ranks, for the tokens of this one.

    Text tokens that attend with the video are the same on every rank; each computes h of their
    heads and they are put together again.

    Args:
        query, key, value: [B, H, n + L, D], or [B, H, L + n, D] if `text_first`.
        attn_mask: as torch takes it, over the local tokens. It must treat video tokens alike.
        num_video: n.
        settings: of `scaled_dot_product_attention`.

    Returns:
        [B, H, n + L, D], or [B, H, L + n, D].
    """
    if not query.shape == key.shape == value.shape:
        raise ValueError(
            "sequence_parallel: expected attention of tokens among themselves, got queries "
            f"{tuple(query.shape)}, keys {tuple(key.shape)} and values {tuple(value.shape)}"
        )
    mask = _wide_mask(attn_mask, query.shape[2], num_video, text_first=text_first, group=group)
    video, text = _parts(torch.cat([query, key, value]), num_video, text_first=text_first)
    some_heads = _joined(
        _to_heads(video, group), text.chunk(group.size(), 1)[group.rank()], text_first=text_first
    )
    query, key, value = some_heads.chunk(3)
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask, **settings)
    video, text = _parts(out, num_video * group.size(), text_first=text_first)
    return _joined(_to_tokens(video, group), _all_heads(text, group), text_first=text_first)


def _to_heads(tokens: Tensor, group: Group) -> Tensor:
    """[B, H, n, D] of this rank's tokens -> [B, h, N, D] of this rank's heads."""
    to_each = tokens.unflatten(1, (group.size(), -1)).movedim(1, 0)
    return _exchange(to_each, group).movedim(0, 2).flatten(2, 3)


def _to_tokens(heads: Tensor, group: Group) -> Tensor:
    """[B, h, N, D] -> [B, H, n, D], the way back."""
    to_each = heads.unflatten(2, (group.size(), -1)).movedim(2, 0)
    return _exchange(to_each, group).movedim(0, 1).flatten(1, 2)


def _all_heads(heads: Tensor, group: Group) -> Tensor:
    """[B, h, L, D] -> [B, H, L, D] on every rank; the gradients of all ranks' copies add up."""
    if not heads.shape[2]:
        return heads.new_empty(heads.shape[0], heads.shape[1] * group.size(), *heads.shape[2:])
    to_each = heads.expand(group.size(), *heads.shape)
    return _exchange(to_each, group).movedim(0, 1).flatten(1, 2)


def _exchange(to_each: Tensor, group: Group) -> Tensor:
    """Send part r of [R, ...] to rank r; return [R, ...] of what they sent."""
    received: Tensor = _AllToAll.apply(to_each, group)  # type: ignore[no-untyped-call]
    return received


def _parts(tokens: Tensor, num_video: int, *, text_first: bool) -> tuple[Tensor, Tensor]:
    num_text = tokens.shape[2] - num_video
    if text_first:
        text, video = tokens.split([num_text, num_video], dim=2)
    else:
        video, text = tokens.split([num_video, num_text], dim=2)
    return video, text


def _joined(video: Tensor, text: Tensor, *, text_first: bool) -> Tensor:
    return torch.cat([text, video] if text_first else [video, text], dim=2)


def _wide_mask(
    mask: Tensor | None, length: int, num_video: int, *, text_first: bool, group: Group
) -> Tensor | None:
    """Return the mask over all tokens, in which every video token is what the first of ours is."""
    if mask is None:
        return None
    place = torch.arange(length, device=mask.device)
    first = length - num_video if text_first else 0
    video = place[first].expand(num_video * group.size())
    text = place[:first] if text_first else place[num_video:]
    wide = torch.cat([text, video] if text_first else [video, text])
    for dim in (-2, -1):
        if mask.shape[dim] != 1:
            mask = mask.index_select(dim, wide)
    return mask


class _AllToAll(torch.autograd.Function):
    """Its adjoint is itself."""

    @staticmethod
    def forward(ctx: Any, to_each: Tensor, group: Group) -> Tensor:
        ctx.group = group
        sent = to_each.contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _AllToAll.forward(ctx, gradients[0], ctx.group), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int, group: Group) -> Tensor:
        ctx.dim, ctx.group = dim, group
        sent = part.contiguous()
        parts = [torch.empty_like(sent) for _ in range(group.size())]
        dist.all_gather(parts, sent, group=group)
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return own_tokens(gradients[0], ctx.dim, ctx.group), None, None


class _SummedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None
