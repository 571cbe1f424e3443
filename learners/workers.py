"""What a learner rank can be: the real one, its sleeping twin, or one of your own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from rlvid.learners.rl import RlSettings
from rlvid.learners.sft import SftSettings
from rlvid.plugins import resolve

LEARNERS: Mapping[str, str] = {
    "deepspeed": "rlvid.learners.rl:RlLearner",
    "sleeping": "rlvid.learners.sleeping:SleepingLearner",
}
"""Short name of `learner.worker` to what opens a rank; strings, so that listing imports nothing."""


def open_learner(settings: RlSettings | SftSettings) -> Any:
    """Return the rank that the settings ask for; RANK and its kin are in the environment."""
    if isinstance(settings, SftSettings):
        from rlvid.learners.sft import SftLearner

        return SftLearner(settings)
    factory = resolve(settings.trainee.learner.worker, LEARNERS, where="learner.worker")
    return cast(Any, factory)(settings)
