"""What virtual roles did with their time, added up as it happens."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Seconds and counts since the run began."""

    actor_s: float = 0.0
    """Of actors that were wanted."""
    sampling_s: float = 0.0
    """Of actors."""
    wasted_s: float = 0.0
    """Of it, what no group came of."""
    scoring_s: float = 0.0
    wasted_scoring_s: float = 0.0
    learning_s: float = 0.0
    """Of the learner: chunks and updates."""
    publishing_s: float = 0.0
    """Of the learner: gathering, checkpoints."""
    waits_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Of the learner, by what it waited for."""
    num_sampling: int = 0
    """Groups that an actor began."""
    starts: int = 0
    """Actors that were started."""

    def sampled(self, seconds: float, *, is_waste: bool) -> None:
        self.sampling_s += seconds
        if is_waste:
            self.wasted_s += seconds

    def copy(self) -> Tally:
        return Tally(
            actor_s=self.actor_s,
            sampling_s=self.sampling_s,
            wasted_s=self.wasted_s,
            scoring_s=self.scoring_s,
            wasted_scoring_s=self.wasted_scoring_s,
            learning_s=self.learning_s,
            publishing_s=self.publishing_s,
            waits_s=defaultdict(float, self.waits_s),
            num_sampling=self.num_sampling,
            starts=self.starts,
        )
