"""Checks that the processes of a rollout actor can share the recipe's clips."""

from __future__ import annotations

from rlvid.actors.gang_peers import check_device
from rlvid.config import Recipe
from rlvid.launch.folder_parts import part_config
from rlvid.models.token_plans import PLANS

CAUSAL_STAGES = ("causal_teacher", "causal_init", "self_forcing")
"""Of distillation: what they end with is sampled block by block."""


def check_sequence_parallel(recipe: Recipe) -> None:
    """Refuse what `rollout.sequence_parallel` cannot be, before an actor finds out.

    That a clip's tokens divide is found at the first forward.

    Raises:
        ValueError: the model's family, heads, kernel or device, or a causal student in the run.
    """
    size, model = recipe.rollout.sequence_parallel, recipe.model
    if size == 1:
        return
    config = part_config(model, "transformer")
    kind, num_heads = config["_class_name"], config.get("num_attention_heads")
    if kind not in PLANS:
        raise ValueError(
            f"rollout.sequence_parallel: not known for {kind}: expected one of {', '.join(PLANS)}, "
            f"got {size} processes. Set it to 1"
        )
    if num_heads is not None and num_heads % size:
        raise ValueError(
            f"rollout.sequence_parallel: {num_heads} heads of {kind} do not divide among {size} "
            f"processes: expected a divisor of {num_heads}"
        )
    if model.attention_backend is not None:
        raise ValueError(
            f"model.attention_backend: expected null with rollout.sequence_parallel {size}, got "
            f"{model.attention_backend!r}: tokens are exchanged within torch's own attention"
        )
    check_device(model, size)
    causal = sorted(set(recipe.distillation.stages) & set(CAUSAL_STAGES))
    if "distillation" in recipe.phases and causal:
        raise ValueError(
            f"rollout.sequence_parallel: expected 1 where distillation.stages make a causal "
            f"student, got {size} and {', '.join(causal)}: no plan of tokens knows its cache of "
            "keys and values"
        )
