"""Which weights the learner has published, and so which groups it may take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlvid.learners.admission import GroupFacts, check_groups
from rlvid.records import RolloutGroup


class Published:
    """Versions that may still be consumed, each with the digest of its manifest."""

    def __init__(self, max_staleness: int) -> None:
        """`max_staleness` is that of RolloutConfig."""
        self._max_staleness = max_staleness
        self._pairs: set[tuple[int, str]] = set()
        self._version, self._digest = -1, ""
        self._is_replayable = True

    def add(self, version: int, digest: str, *, is_average: bool) -> None:
        """Take a publish as the newest; groups of an average are no replay of what is trained."""
        self._version, self._digest = version, digest
        self._pairs.add((version, digest))
        self._is_replayable = not is_average
        self._forget_old()

    def restore(self, pairs: Iterable[tuple[int, str]]) -> None:
        """Take publishes of an earlier start of the learner beside those of this one."""
        self._pairs |= set(pairs)
        self._forget_old()

    def digest_of(self, version: int) -> str:
        """Return the manifest digest of a version that may still be consumed."""
        if version == self._version:
            return self._digest
        return next(digest for number, digest in sorted(self._pairs) if number == version)

    def is_fresh(self, group: RolloutGroup) -> bool:
        """True for a group of the weights held now: its ratio is 1 before the first update."""
        is_newest = (group.policy_version, group.weights_digest) == (self._version, self._digest)
        return is_newest and self._is_replayable

    def check(self, facts: Sequence[GroupFacts], expected_ids: Mapping[int, str]) -> None:
        """Refuse groups that may not be trained on; see `admission.check_groups`."""
        check_groups(
            facts,
            expected_ids=expected_ids,
            version=self._version,
            published=self._pairs,
            max_staleness=self._max_staleness,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self._version,
            "digest": self._digest,
            "published": [list(pair) for pair in sorted(self._pairs)],
        }

    def load(self, tree: Mapping[str, Any]) -> None:
        """Go on from what `to_json` returned."""
        self._version, self._digest = int(tree["version"]), str(tree["digest"])
        self._pairs = {(int(version), str(digest)) for version, digest in tree["published"]}

    def _forget_old(self) -> None:
        oldest = self._version - self._max_staleness
        self._pairs = {pair for pair in self._pairs if pair[0] >= oldest}
