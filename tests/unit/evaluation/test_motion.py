"""The motion that a student may lose."""

from __future__ import annotations

import pytest
import torch

from rlvid.evaluation.motion import has_faded, mean_motion


def test_motion_is_the_mean_change_between_frames() -> None:
    still = torch.full((1, 4, 3, 2, 2), 0.5)
    moving = torch.linspace(0.0, 0.3, 4).view(1, 4, 1, 1, 1).expand_as(still)
    torch.testing.assert_close(mean_motion(torch.cat([still, moving])), torch.tensor([0.0, 0.1]))
    with pytest.raises(ValueError, match="at least 2 frames"):
        mean_motion(still[:, :1])


def test_fading_is_below_the_teachers_and_below_what_there_was() -> None:
    assert has_faded(0.8, teacher=1.0, best=1.2, min_frac=0.9)
    assert not has_faded(0.95, teacher=1.0, best=1.2, min_frac=0.9)
    assert not has_faded(0.4, teacher=1.0, best=0.4, min_frac=0.9), "it has only begun"
    assert has_faded(0.3, teacher=1.0, best=0.4, min_frac=0.9)
    assert not has_faded(0.0, teacher=1.0, best=1.0, min_frac=None)
