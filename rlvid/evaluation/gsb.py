"""Good / Same / Bad: which of two policies people prefer, voted blind, pair by pair.

The form in which post-training papers report people's judgement (arXiv:2604.25427): per axis,
gsb = (good - bad) / (good + same + bad), where good says that the second policy was preferred.
Letters: N pairs, V votes, K = 3 verdicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from rlvid.evaluation.gsb_votes import AXES, Choice, Vote, last_votes
from rlvid.evaluation.statistics import check_settings, mean_interval
from rlvid.seeds import derive_seed

Side = Literal["left", "right"]
Verdict = Literal["good", "same", "bad"]
"""Of the second policy."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
VALUES: Mapping[Verdict, int] = {"good": 1, "same": 0, "bad": -1}


@dataclass(frozen=True, slots=True, kw_only=True)
class GsbPair:
    """One prompt and the clip that each policy made of it."""

    pair_id: str
    """Says nothing about the clips; it is in the page and in every vote."""
    prompt: str
    first: str
    """Clip of policy A, the one that is compared against."""
    second: str
    """Clip of policy B, the one that is judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisTally:
    """What the votes on one axis say of policy B against policy A."""

    axis: str
    good: int
    """Votes that prefer B."""
    same: int
    bad: int
    gsb: float | None
    """(good - bad) / (good + same + bad), in [-1, 1]; None without votes."""
    low: float | None
    """Bootstrap interval of gsb, whole pairs resampled; None with votes on fewer than 2 pairs. It
    has no width where all votes agree, however few: a bootstrap cannot see what never happened."""
    high: float | None
    num_pairs: int
    """With at least one vote."""
    num_voters: int
    kappa: float | None
    """Fleiss' kappa over the pairs with two votes at least; None where it is undefined."""
    num_pairs_shared: int
    """Pairs that kappa rests on."""

    @property
    def num_votes(self) -> int:
        return self.good + self.same + self.bad


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """All axes of one comparison."""

    axes: tuple[AxisTally, ...]
    num_voters: int
    num_replaced: int
    """Votes that their voter took back by a later one."""


def assign_sides(pair_ids: Sequence[str], seed: int) -> dict[str, Side]:
    """Return for each pair the side that shows policy A: left for half of them, chosen by the seed.

    Balanced, so that a voter's leaning to one side cannot pass for a preference; with an odd number
    the seed decides which side has one more. Whoever knows the seed knows the sides.

    Raises:
        ValueError: a pair id is given twice.
    """
    if len(set(pair_ids)) != len(pair_ids):
        twice = sorted({name for name in pair_ids if pair_ids.count(name) > 1})
        raise ValueError(f"gsb: pair_id: given twice: {', '.join(twice[:5])}. Make them unique.")
    order = sorted(pair_ids, key=lambda name: derive_seed(seed, "gsb side", name))
    num_left = (len(order) + derive_seed(seed, "gsb odd side") % 2) // 2
    shown_left = set(order[:num_left])
    return {name: "left" if name in shown_left else "right" for name in pair_ids}


def verdict_of(choice: Choice, side_of_first: Side) -> Verdict:
    """Return what a choice of a side says of policy B."""
    if choice == "same":
        return "same"
    return "bad" if choice == side_of_first else "good"


def tally(
    votes: Sequence[Vote],
    sides: Mapping[str, Side],
    *,
    num_bootstrap: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Tally:
    """Count the votes per axis, unblinded, with intervals and agreement.

    A voter's later vote on the same pair and axis replaces the earlier one. Votes on one pair are
    not independent (every voter saw the same two clips), so the bootstrap resamples whole pairs:
    more voters on the same pairs narrow it less than more pairs do.

    Args:
        votes: [V] as read, replaced ones among them.
        sides: pair id to the side that showed policy A, see `assign_sides`.

    Raises:
        ValueError: a vote on a pair that `sides` does not have.
    """
    check_settings(num_bootstrap, confidence)
    unknown = sorted({vote.pair_id for vote in votes} - set(sides))
    if unknown:
        raise ValueError(
            f"gsb: {len(unknown)} pairs with votes are not in the key, e.g. {unknown[0]!r}: "
            "expected the votes of this sheet. Give the key and the votes of one sheet."
        )
    counted = last_votes(votes)
    return Tally(
        axes=tuple(
            _tally_axis(
                axis,
                [vote for vote in counted if vote.axis == axis],
                sides,
                num_bootstrap=num_bootstrap,
                confidence=confidence,
                seed=seed,
            )
            for axis in AXES
        ),
        num_voters=len({vote.voter for vote in counted}),
        num_replaced=len(votes) - len(counted),
    )


def fleiss_kappa(counts: ArrayLike) -> float | None:
    r"""Return the agreement of voters beyond chance, 1 if all agree and 0 if as by chance.

    With n_ij votes of verdict j on pair i, n_i = sum_j n_ij and p_j = sum_i n_ij / sum_i n_i,

        P_i = (sum_j n_ij^2 - n_i) / (n_i (n_i - 1)),   P_e = sum_j p_j^2,
        kappa = (mean_i P_i - P_e) / (1 - P_e)

    (Fleiss, Measuring nominal scale agreement among many raters, 1971, with n_i that may differ.)

    Args:
        counts: [N, K] votes; every pair needs two at least.

    Returns:
        None without pairs, or where one verdict got every vote: chance would agree as well.
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.size == 0:
        return None
    per_pair = table.sum(axis=1)
    if table.ndim != 2 or (per_pair < 2).any():
        raise ValueError(
            f"fleiss_kappa: expected counts [N, K] with 2 votes a pair at least, got shape "
            f"{table.shape}. Leave out the pairs that one voter saw."
        )
    agreement = ((table**2).sum(axis=1) - per_pair) / (per_pair * (per_pair - 1))
    by_chance = float(((table.sum(axis=0) / table.sum()) ** 2).sum())
    if by_chance >= 1.0:
        return None
    return float((agreement.mean() - by_chance) / (1.0 - by_chance))


def _tally_axis(
    axis: str,
    votes: Sequence[Vote],
    sides: Mapping[str, Side],
    *,
    num_bootstrap: int,
    confidence: float,
    seed: int,
) -> AxisTally:
    verdicts = [verdict_of(vote.choice, sides[vote.pair_id]) for vote in votes]
    pairs = [vote.pair_id for vote in votes]
    by_pair: dict[str, list[Verdict]] = {}
    for pair, verdict in zip(pairs, verdicts, strict=True):
        by_pair.setdefault(pair, []).append(verdict)
    low = high = None
    values = [VALUES[verdict] for verdict in verdicts]
    if len(by_pair) >= 2:
        _, low, high = mean_interval(
            values, pairs, num_bootstrap=num_bootstrap, confidence=confidence, seed=seed
        )
    shared = [found for found in by_pair.values() if len(found) >= 2]
    return AxisTally(
        axis=axis,
        good=verdicts.count("good"),
        same=verdicts.count("same"),
        bad=verdicts.count("bad"),
        gsb=sum(values) / len(values) if values else None,
        low=low,
        high=high,
        num_pairs=len(by_pair),
        num_voters=len({vote.voter for vote in votes}),
        kappa=fleiss_kappa([[found.count(name) for name in VERDICTS] for found in shared]),
        num_pairs_shared=len(shared),
    )
