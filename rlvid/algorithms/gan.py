r"""DMD2's GAN term (arXiv:2405.14867): the non-saturating loss on logits of noised clips.

    discriminator   softplus(D(fake)) + softplus(-D(real))
    student         softplus(-D(fake))

with softplus(z) = log(1 + exp(z)), as in the released code. D is a head on the fake score's
features, so fakes and real clips are shown to it with noise, of levels drawn alike.

Letters: B rows, C F H W latents.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


def fake_logit_loss(logit: Tensor) -> Tensor:
    """Return the discriminator's loss [B] on clips of the student; log 2 where it is undecided."""
    return softplus(logit)


def real_logit_loss(logit: Tensor) -> Tensor:
    """Return the discriminator's loss [B] on real clips, which is the student's on its own."""
    return softplus(-logit)


def student_gan_gradient(logit: Tensor, clean: Tensor) -> Tensor:
    """Return the gradient of the student's loss with respect to its clips, [B, C, F, H, W].

    Of each row's own loss, a *sum* over elements as in `dmd_gradient`, and taken for `clean` alone:
    nothing is left in the parameters that the logit went through.

    Args:
        logit: [B] with a graph from `clean`.
        clean: [B, C, F, H, W], a leaf.
    """
    (gradient,) = torch.autograd.grad(real_logit_loss(logit).sum(), clean)
    return gradient


def scaled_gan_gradient(gradient: Tensor, weight: float) -> Tensor:
    """Return the weighted gradient in the scale of `dmd_gradient`, to be added to it.

    The published matching loss is a mean over the elements of a clip, so `dmd_loss`, a sum, is
    divided by their number afterwards; this term is no mean, so it is multiplied by it here.

    Args:
        gradient: of `student_gan_gradient`, [B, C, F, H, W].
    """
    return weight * gradient[0].numel() * gradient
