"""What an estimate is made of: kinds of work in FLOPs, and the model they are counted for."""

from __future__ import annotations

from dataclasses import dataclass

from rlvid.config import Recipe
from rlvid.launch.estimate.assumptions import Assumptions
from rlvid.launch.model_size import ClipFlops, read_clip_flops, read_row_flops
from rlvid.observability.flops import RowFlops

ACTORS, DECODER, LEARNER = "actors", "decoder", "learner"
REWRITER = "rewriter server"
"""Of phase prompt_enhancement, where its learner does not write itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One kind of work of a phase."""

    what: str
    amount: str
    """For the reader."""
    flops: float | None
    """None where nobody knows them."""
    mfu: float
    role: str
    """ACTORS, DECODER, LEARNER, REWRITER, or the name of a server."""
    stage: int = 0
    """Stages of a phase come one after the other; what is in one overlaps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The FLOPs of the recipe's model, and what is assumed."""

    row: RowFlops
    clip: ClipFlops
    assumed: Assumptions


def count_model(recipe: Recipe, assumed: Assumptions) -> Counted | None:
    """Return the FLOPs of the model; None for a transformer whose FLOPs nobody wrote down."""
    row = read_row_flops(recipe.model)
    if row is None:
        return None
    return Counted(row=row, clip=read_clip_flops(recipe.model), assumed=assumed)
