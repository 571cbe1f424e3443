"""How much moves in a clip, and whether a student in training is losing it.

Long distribution matching makes motion fade (Causal Forcing, arXiv:2602.02214). The measure counts
flicker as motion, so it shows a loss and no gain.
"""

from __future__ import annotations

from torch import Tensor


def mean_motion(videos: Tensor) -> Tensor:
    """Return mean |frame - frame before| of each clip, [B] float32, in units of the pixel range.

    Args:
        videos: [B, T, 3, H, W] in [0, 1], T at least 2.
    """
    if videos.ndim != 5 or videos.shape[1] < 2:
        raise ValueError(
            f"motion: videos have shape {tuple(videos.shape)}: expected [B, T, 3, H, W] with at "
            "least 2 frames. Raise model.num_frames."
        )
    return (videos[:, 1:] - videos[:, :-1]).abs().flatten(1).mean(dim=1)


def has_faded(motion: float, *, teacher: float, best: float, min_frac: float | None) -> bool:
    """Return whether motion is below `min_frac` of the teacher's and of the student's own best.

    A student that never reached the teacher's, as at its start, has not faded until it falls below
    what it had.

    Args:
        best: the most that the student has had so far, this time included.
        min_frac: None never is.
    """
    return min_frac is not None and motion < min_frac * min(teacher, best)
