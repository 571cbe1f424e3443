"""What the scorers turned out to be, and which scores are known before anybody is asked."""

from __future__ import annotations

from collections.abc import Sequence

from rlvid.rewards.base import Endpoint
from rlvid.rewards.decoding import ClipInfo
from rlvid.rewards.dispatch.cache import ScoreCache, score_key, served_version
from rlvid.rewards.dispatch.metrics import PoolMetrics
from rlvid.rewards.scoring import ScorerInfo, check_clip


class KnownScores:
    """The score cache, by scorer and clip. A scorer that has not opened yet knows nothing."""

    def __init__(self, cache: ScoreCache, metrics: PoolMetrics) -> None:
        self._cache = cache
        self._metrics = metrics
        self._endpoints: dict[str, Sequence[Endpoint]] = {}
        self.infos: dict[str, ScorerInfo] = {}

    def connected(self, label: str, endpoints: Sequence[Endpoint]) -> None:
        """The models behind the endpoints are part of the scorer's version from now on."""
        self._endpoints[label] = endpoints

    def version(self, label: str) -> str:
        """Return what changes when the same clip may get another score, of a scorer that opened."""
        return served_version(self.infos[label].version, self._endpoints.get(label, ()))

    def check(self, label: str, info: ClipInfo, *, is_submitted: bool) -> None:
        """Raise RewardError when the scorer needs other clips."""
        known = self.infos.get(label)
        if known is not None:
            shape = (info.num_frames, info.height, info.width)
            where = f"rewards {label!r}"
            check_clip(known.clip_spec, shape, fps=info.fps, where=where, is_submitted=is_submitted)

    def key(self, label: str, info: ClipInfo, row: int) -> str:
        """Return where the score of a clip is kept; "" where it cannot be known."""
        known = self.infos.get(label)
        if known is None:
            return ""
        version = self.version(label)
        if known.is_groupwise:
            return score_key(version, info.prompt, info.digests, row)
        return score_key(version, info.prompt, info.digests[row : row + 1])

    def look_up(self, label: str, keys: Sequence[str]) -> list[float | None]:
        """Return the known scores of clips of one group; a group-wise scorer's all or none."""
        values = [self._cache.get(key) if key else None for key in keys]
        known = self.infos.get(label)
        if known is not None and known.is_groupwise and None in values:
            values = [None] * len(values)
        for key, value in zip(keys, values, strict=True):
            if key:
                self._metrics.looked_up(label, hit=value is not None)
        return values

    def keep(self, key: str, value: float) -> None:
        if key:
            self._cache.put(key, value)
