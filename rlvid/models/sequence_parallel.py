"""Sequence parallelism: the tokens of one clip spread over ranks of the learner or of an actor.

A diffusers transformer is taught it by hooks, from its row of `rlvid.models.token_plans`: some
modules' inputs and outputs are cut to the rank's tokens, `proj_out`'s are put together, and between
them the attention of video tokens among themselves is Ulysses (`rlvid.models.token_exchange`).
Everything else is the same for each token, and text is the same on every rank. Ranks of a group
must be given the same rows; each returns the whole velocity, the same on all to the bit.

Gradients: of the latents whole on every rank; of a parameter a part, and the parts of a group add
up to it. Sums over all ranks, as `ZeroEngine` makes them, are therefore right without a factor.

Why not diffusers' own `enable_parallelism` (0.42): its plans cover Wan and LTX alone of the
families here, since text that attends with the video has to divide as well; it asks for an
accelerator; and its backward runs the attention a second time. Where both run they agree.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from rlvid.models.token_exchange import Group, all_tokens, attend, own_tokens, summed_gradient
from rlvid.models.token_plans import LAST, LATENTS, PLANS, TokenPlan


def open_sequence_group(size: int, *, timeout_s: float) -> Group:
    """Return this rank's group of `size` consecutive ranks; a collective of all ranks.

    Args:
        size: divides the number of ranks.
    """
    mine: Group
    mine, _ = dist.new_subgroups(size, timeout=timedelta(seconds=timeout_s))
    return mine


def spread_tokens(transformer: nn.Module, group: Group) -> None:
    """Have every forward of `transformer`, and of later deep copies, share out its tokens.

    Adapters must be bound already. From here on a forward is a collective of the group.

    Args:
        transformer: of a class in `PLANS`, or a module that holds such (two experts).

    Raises:
        ValueError: nobody knows where its tokens meet, or its heads do not divide.
    """
    parts = [part for part in transformer.modules() if type(part).__name__ in PLANS]
    if not parts:
        raise ValueError(
            f"sequence_parallel: not known for {type(transformer).__name__}: expected one "
            f"of {', '.join(PLANS)}. Set it to 1, or add a TokenPlan"
        )
    for part in parts:
        _spread(part, PLANS[type(part).__name__], group)


def _spread(transformer: nn.Module, plan: TokenPlan, group: Group) -> None:
    config: Any = transformer.config
    num_heads = int(config.num_attention_heads)
    if num_heads % group.size():
        raise ValueError(
            f"sequence_parallel: {num_heads} heads of {type(transformer).__name__} do not "
            f"divide among {group.size()} ranks: expected a divisor of {num_heads}"
        )
    _change_inputs(transformer, [LATENTS], lambda tensor, _: _followed(tensor, group))
    for pattern, dims in plan.inputs.items():
        for module in _named(transformer, pattern):
            _change_inputs(module, list(dims), _cut_inputs(dims, group))
    for pattern, dim in plan.outputs.items():
        for module in _named(transformer, pattern):
            module.register_forward_hook(_cut_outputs(dim, group))
    transformer.get_submodule(LAST).register_forward_hook(
        lambda module, args, output: all_tokens(output, 1, group)
    )
    for attention in _named(transformer, plan.attention):
        _exchange_in(attention, plan, group)


def _named(transformer: nn.Module, pattern: str) -> list[nn.Module]:
    """Return the modules whose names match, at least one."""
    found = [module for name, module in transformer.named_modules() if re.fullmatch(pattern, name)]
    assert found, f"no module of {type(transformer).__name__} is called {pattern}"
    return found


def _followed(latents: Tensor, group: Group) -> Tensor:
    """Give back the whole gradient where a reward's runs through several forwards."""
    return summed_gradient(latents, group) if latents.requires_grad else latents


def _cut_inputs(dims: Mapping[str, int], group: Group) -> Callable[[Any, str], Any]:
    def cut(value: Any, name: str) -> Any:
        if isinstance(value, Tensor) and value.ndim <= dims[name]:
            return value
        return _cut(value, dims[name], group)

    return cut


def _cut_outputs(dim: int, group: Group) -> Callable[[nn.Module, Any, Any], Any]:
    return lambda module, args, output: _cut(output, dim, group)


def _cut(value: Any, dim: int, group: Group) -> Any:
    """Cut a tensor, or each of several, to this rank's tokens; None stays."""
    if isinstance(value, tuple | list):
        return tuple(own_tokens(one, dim, group) for one in value)
    return None if value is None else own_tokens(value, dim, group)


def _change_inputs(module: nn.Module, names: list[str], change: Callable[[Any, str], Any]) -> None:
    """Have `change(value, name)` be what the module gets, by position or by name."""
    places = {name: place for place, name in enumerate(_arguments(module))}

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        changed, named = list(args), dict(kwargs)
        for name in names:
            if name in named:
                named[name] = change(named[name], name)
            elif places[name] < len(changed):
                changed[places[name]] = change(changed[places[name]], name)
        return tuple(changed), named

    module.register_forward_pre_hook(hook, with_kwargs=True)


def _arguments(module: nn.Module) -> list[str]:
    return list(inspect.signature(type(module).forward).parameters)[1:]


def _exchange_in(attention: nn.Module, plan: TokenPlan, group: Group) -> None:
    """Have torch's attention within the module be that over the tokens of all ranks.

    By hooks on the module, not around the transformer: a checkpointed block runs again in the
    backward, when the transformer's own forward is over.
    """
    place = _arguments(attention).index(LATENTS)
    running: list[_Exchanging] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs[LATENTS] if LATENTS in kwargs else args[place]
        mode = _Exchanging(tokens.shape[1], plan, group)
        mode.__enter__()  # type: ignore[no-untyped-call]
        running.append(mode)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        mode = running.pop()
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if output is not None and not mode.num_calls:
            raise RuntimeError(
                f"sequence_parallel: {type(module).__name__} attended by another kernel "
                "than torch's: expected scaled_dot_product_attention. Leave "
                "model.attention_backend null"
            )

    attention.register_forward_pre_hook(enter, with_kwargs=True)
    attention.register_forward_hook(leave, always_call=True)


class _Exchanging(TorchFunctionMode):
    """Within it torch's attention exchanges tokens for heads."""

    def __init__(self, num_video: int, plan: TokenPlan, group: Group) -> None:
        super().__init__()
        self._num_video = num_video
        self._plan = plan
        self._group = group
        self.num_calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.num_calls += 1
        return attend(
            *args,
            **(kwargs or {}),
            num_video=self._num_video,
            text_first=self._plan.text_first,
            group=self._group,
        )
