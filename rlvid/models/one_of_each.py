"""A model with one of its equal blocks, for counting what the others do as well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def one_of_each(module: nn.Module) -> Iterator[dict[str, int]]:
    """Leave the first of every kind of block in a module's lists, and yield how often it is there.

    Blocks are of a kind when they have the same structure and parameters of the same shapes; what
    they do must not depend on their place. All are back at the end.

    Yields:
        Name of each block that is left, as the module has it now, to the number of its kind.
    """
    whole = list(_outer_lists(module))
    times: dict[str, int] = {}
    try:
        for parent, name, path, blocks in whole:
            kinds = [_kind(block) for block in blocks]
            numbers = Counter(kinds)
            kept = {kind: blocks[kinds.index(kind)] for kind in numbers}  # in order of appearance
            setattr(parent, name, nn.ModuleList(kept.values()))
            times |= {f"{path}.{place}": numbers[kind] for place, kind in enumerate(kept)}
        yield times
    finally:
        for parent, name, _, blocks in whole:
            setattr(parent, name, blocks)


def _outer_lists(
    module: nn.Module, path: str = ""
) -> Iterator[tuple[nn.Module, str, str, nn.ModuleList]]:
    """Yield parent, name, path and list of every list of modules that is in no other."""
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList):
            yield module, name, inner, child
        else:
            yield from _outer_lists(child, inner)


def _kind(block: nn.Module) -> tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]:
    shapes = ((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())
    return repr(block), tuple(shapes)
