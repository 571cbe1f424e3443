"""Do all ranks hold the same parameters? A broken link or memory cell is found by asking only."""

from __future__ import annotations

from rlvid.learners.calls import LearnerLostError
from rlvid.learners.zero_engine import ZeroEngine
from rlvid.weights import digest_tensors


class ParameterMismatchError(LearnerLostError):
    """Ranks that should hold the same parameters do not; the message names them."""


def check_same_parameters(engine: ZeroEngine, base_digest: str) -> None:
    """Compare a digest of what every rank holds whole; a collective.

    ZeRO 0 to 2 hold every trained parameter on every rank. Stage 3 holds only the small ones so
    between steps; the others exist once, and are not compared.

    Args:
        base_digest: of what is not trained, as this rank opened it.

    Raises:
        ParameterMismatchError: on every rank alike.
    """
    ranks = engine.ranks
    held = [digest_tensors(engine.replicated_parameters()), base_digest]
    found = ranks.gather_json(held)
    by_digest: dict[tuple[str, ...], list[int]] = {}
    for rank, digests in enumerate(found):
        by_digest.setdefault(tuple(digests), []).append(rank)
    if len(by_digest) == 1:
        return
    parts = sorted(by_digest.items(), key=lambda part: (-len(part[1]), part[1]))
    said = "; ".join(
        f"rank {', '.join(map(str, members))}: trained {trained}, base {base}"
        for (trained, base), members in parts
    )
    raise ParameterMismatchError(
        f"learner: the ranks hold different parameters: expected one digest, got {said}. Memory or "
        "a link of one of them corrupts data, or a rank opened other files. Nothing of this state "
        "was saved: resume from the last checkpoint, on another node if it happens again"
    )
