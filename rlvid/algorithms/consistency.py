r"""Consistency distillation: one answer along a whole trajectory of the teacher.

    f(x, sigma)  =  x - sigma v(x, sigma)                      so f(x, 0) = x, whatever v
    x'           =  x + (sigma' - sigma) v_teacher(x, sigma)   one Euler step, sigma' < sigma
    L            =  E || f(x, sigma) - stop(f_average(x', sigma')) ||^2

(Consistency Models, arXiv:2303.01469, with the squared distance, weight 1, and the parametrisation
of flow matching; for causal students Causal Forcing, arXiv:2602.02214, released code). At sigma'
of 0 the target is x', the end of the trajectory; from there the answer spreads to levels above.

Letters: B rows, C F H W latents. Levels are one for a row, or one for each frame of it, in a shape
that multiplies latents: [B, 1, 1, 1, 1] or [B, 1, F, 1, 1].
"""

from __future__ import annotations

from torch import Tensor


def consistency_answer(velocity: Tensor, latents: Tensor, level: Tensor) -> Tensor:
    """Return f(x, sigma) [B, C, F, H, W], the clean video; `latents` themselves at level 0."""
    return latents - level * velocity


def teacher_step(velocity: Tensor, latents: Tensor, level: Tensor, level_next: Tensor) -> Tensor:
    """Return the teacher's state at `level_next` [B, C, F, H, W], by an Euler step.

    Args:
        velocity: of the teacher at `latents`, guided.
        level_next: below `level` everywhere.
    """
    return latents + (level_next - level) * velocity


def consistency_loss(answer: Tensor, target: Tensor) -> Tensor:
    """Return the loss [B], mean over elements.

    Args:
        answer: [B, C, F, H, W] of the student at the higher level, with gradient.
        target: of its average at the lower one; detached here.
    """
    return (answer - target.detach()).square().flatten(1).mean(dim=1)
