"""What a transformer is told beside latents and noise level.

A prompt of Wan is one tensor; other families have a mask of the text, a pooled vector or the
latents of a first frame beside it. Nothing outside `rlvid.models` looks at the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """Named tensors [B, ...], a row for each clip.

    Of one model every prompt has the same names and, but for B, the same shapes, so that rows of
    different prompts go through one forward.
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        rows = {name: tensor.shape[0] for name, tensor in self.tensors.items()}
        if len(set(rows.values())) != 1:
            raise ValueError(
                f"condition: expected one number of rows for all tensors, at least one, got {rows}"
            )

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    @property
    def num_rows(self) -> int:
        """B."""
        return next(iter(self.tensors.values())).shape[0]

    def expand(self, num_rows: int) -> Condition:
        """Return as many rows: those there are, or the single one for each without a copy.

        Raises:
            RuntimeError: there are several rows, and another number.
        """
        return self._each(lambda tensor: tensor.expand(num_rows, *tensor.shape[1:]))

    def repeat_interleave(self, times: int) -> Condition:
        """Return every row so many times, one behind the other."""
        return self._each(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def rows(self, index: slice | Sequence[int]) -> Condition:
        """Return some rows."""
        return self._each(lambda tensor: tensor[index])

    def to(self, device: torch.device) -> Condition:
        return self._each(lambda tensor: tensor.to(device))

    def joined(self, other: Condition) -> Condition:
        """Return the rows of this one, then those of the other."""
        return concatenate([self, other])

    def __or__(self, other: Condition) -> Condition:
        """Return the tensors of both, for the same rows.

        Raises:
            ValueError: a name is in both.
        """
        twice = sorted(set(self.tensors) & set(other.tensors))
        if twice:
            raise ValueError(f"condition: {twice} come twice; expected each name in one part")
        return Condition({**self.tensors, **other.tensors})

    def _each(self, change: Callable[[Tensor], Tensor]) -> Condition:
        return Condition({name: change(tensor) for name, tensor in self.tensors.items()})


def concatenate(conditions: Sequence[Condition]) -> Condition:
    """Return the rows of several conditions of one model, one behind the other.

    Raises:
        ValueError: they do not have the same names.
    """
    names = [set(condition.tensors) for condition in conditions]
    if any(other != names[0] for other in names):
        raise ValueError(
            f"condition: expected the same names in each, got {sorted(map(sorted, names))}; join "
            "conditions of one model, with or without media"
        )
    return Condition(
        {name: torch.cat([c.tensors[name] for c in conditions]) for name in conditions[0].tensors}
    )
