"""Finds the dimensions in which a policy is weak, and says in words what its low scorers share.

GigaVideo-1 has a person name weak dimensions; its reviewers ask for scoring a broad prompt set and
clustering what scores low (methods 2.6), which is what this does. Letters: N prompts, K clusters.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlvid.config.data_engine import WeaknessConfig
from rlvid.data.engine.embedding import Embedder, Vectors, cosine_distance, words_of
from rlvid.data.engine.records import Cluster, Weakness
from rlvid.evaluation.statistics import mean_interval
from rlvid.records import Prompt

ClipScores = Mapping[tuple[str, int], float]
"""(prompt id, seed index) to score."""
NUM_SEED_PROMPTS = 24
"""Lowest scorers that serve the writer as examples."""
NUM_WORDS = 4
"""That name a cluster."""
PRIOR = 0.1
"""Pseudo-count of every word, of the informative Dirichlet prior."""
ROUNDS = 20
"""Of k-means; a few dozen short sentences settle in fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DimensionScore:
    """How the policy does in one dimension on the broad prompts."""

    dimension: str
    mean: float
    low: float
    high: float
    num_clips: int


def dimension_scores(scores: Mapping[str, ClipScores]) -> tuple[DimensionScore, ...]:
    """Return mean and interval of every dimension, weakest first; prompts are resampled whole.

    Raises:
        ValueError: a dimension has no score at all.
    """
    found = []
    for dimension, values in scores.items():
        if not values:
            raise ValueError(
                f"data_engine.weakness: {dimension!r} scored no clip of the broad prompts; look at "
                "the scorer's errors, a missing score is never 0"
            )
        pairs = sorted(values)
        mean, low, high = mean_interval([values[p] for p in pairs], [p[0] for p in pairs])
        found.append(
            DimensionScore(dimension=dimension, mean=mean, low=low, high=high, num_clips=len(pairs))
        )
    return tuple(sorted(found, key=lambda row: (row.mean, row.dimension)))


def find_weaknesses(
    rows: Sequence[DimensionScore],
    scores: Mapping[str, ClipScores],
    prompts: Sequence[Prompt],
    config: WeaknessConfig,
    *,
    embedder: Embedder,
    seed: int,
) -> tuple[Weakness, ...]:
    """Return the weak dimensions, the weakest first.

    Weak is a dimension whose whole interval lies below `config.below`: one that is low by chance
    is not trained.

    Args:
        rows: `dimension_scores` of the scores.

    Raises:
        ValueError: no dimension is weak.
    """
    weak = [row for row in rows if row.high < config.below][: config.max_dimensions]
    if not weak:
        best = ", ".join(f"{row.dimension} {row.mean:.3f} (to {row.high:.3f})" for row in rows)
        raise ValueError(
            f"data_engine.weakness: no dimension lies below {config.below} with its whole "
            f"interval: {best}. Raise data_engine.weakness.below, take more num_prompts, or name "
            "the dimensions in data_engine.weakness.given."
        )
    by_id = {prompt.prompt_id: prompt.text for prompt in prompts}
    return tuple(
        _weakness(row, _by_prompt(scores[row.dimension]), by_id, config, embedder, seed)
        for row in weak
    )


def _weakness(
    row: DimensionScore,
    means: Mapping[str, float],
    texts: Mapping[str, str],
    config: WeaknessConfig,
    embedder: Embedder,
    seed: int,
) -> Weakness:
    """Return what the lowest prompts of a dimension have in common; maps are by prompt id."""
    order = sorted(means, key=lambda prompt_id: (means[prompt_id], prompt_id))
    lowest = order[: max(config.num_clusters, math.ceil(config.low_frac * len(order)))]
    clusters = name_clusters(
        [texts[prompt_id] for prompt_id in lowest],
        [means[prompt_id] for prompt_id in lowest],
        others=[texts[prompt_id] for prompt_id in order[len(lowest) :]],
        num_clusters=config.num_clusters,
        embedder=embedder,
        seed=seed,
    )
    words = "; ".join(" ".join(cluster.words) for cluster in clusters)
    return Weakness(
        dimension=row.dimension,
        description=f"low in {row.dimension}: {words}",
        seed_prompts=tuple(texts[i] for i in lowest[:NUM_SEED_PROMPTS]),
        seed_scores=tuple(means[i] for i in lowest[:NUM_SEED_PROMPTS]),
        mean=row.mean,
        low=row.low,
        high=row.high,
        clusters=clusters,
    )


def name_clusters(
    texts: Sequence[str],
    scores: Sequence[float],
    *,
    others: Sequence[str],
    num_clusters: int,
    embedder: Embedder,
    seed: int,
) -> tuple[Cluster, ...]:
    """Group texts by what they say and name each group by its words, lowest mean first.

    Args:
        others: texts that do well, from which the names must set the groups apart.
    """
    labels = k_means(embedder(texts), num_clusters, seed=seed)
    background = Counter(word for text in others for word in words_of(text))
    clusters = []
    for label in sorted(set(labels.tolist())):
        members = [n for n in range(len(texts)) if labels[n] == label]
        own = Counter(word for n in members for word in words_of(texts[n]))
        clusters.append(
            Cluster(
                words=telling_words(own, background),
                num_prompts=len(members),
                mean=statistics.fmean(scores[n] for n in members),
            )
        )
    return tuple(sorted(clusters, key=lambda cluster: cluster.mean))


def telling_words(own: Counter[str], background: Counter[str]) -> tuple[str, ...]:
    """Return the words most over-represented in `own`, by z-scored log-odds with a Dirichlet prior.

    Monroe, Colaresi and Quinn, "Fightin' Words", Political Analysis 16, 2008, eq. 16 to 22: the
    prior keeps words seen once from winning.
    """
    vocabulary = set(own) | set(background)
    own_total = own.total() + PRIOR * len(vocabulary)
    background_total = background.total() + PRIOR * len(vocabulary)

    def z_score(word: str) -> float:
        mine, theirs = own[word] + PRIOR, background[word] + PRIOR
        log_odds = math.log(mine / (own_total - mine)) - math.log(
            theirs / (background_total - theirs)
        )
        return log_odds / math.sqrt(1.0 / mine + 1.0 / theirs)

    ranked = sorted(own, key=lambda word: (-z_score(word), word))
    return tuple(word for word in ranked[:NUM_WORDS] if z_score(word) > 0.0) or tuple(ranked[:1])


def k_means(vectors: Vectors, num_clusters: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Return the cluster of each row; spherical k-means with k-means++ starts, the same by seed."""
    rng = np.random.default_rng(seed)
    num_clusters = min(num_clusters, len(vectors))
    centres = vectors[[int(rng.integers(len(vectors)))]]
    while len(centres) < num_clusters:
        apart = np.maximum(cosine_distance(vectors, centres).min(axis=1).astype(np.float64), 0.0)
        if apart.sum() <= 1e-9:
            break
        chosen = int(rng.choice(len(vectors), p=apart / apart.sum()))
        centres = np.concatenate([centres, vectors[[chosen]]])
    labels = np.zeros(len(vectors), dtype=np.int64)
    for _ in range(ROUNDS):
        labels = cosine_distance(vectors, centres).argmin(axis=1)
        for place in range(len(centres)):
            members = vectors[labels == place]
            if len(members):
                mean = members.mean(axis=0)
                centres[place] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return labels


def _by_prompt(scores: ClipScores) -> dict[str, float]:
    """Return the mean over the clips of each prompt."""
    by_prompt: dict[str, list[float]] = {}
    for (prompt_id, _), value in scores.items():
        by_prompt.setdefault(prompt_id, []).append(value)
    return {prompt_id: statistics.fmean(values) for prompt_id, values in by_prompt.items()}
