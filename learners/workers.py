"""What a learner rank can be: the real one, its sleeping twin, or one of your own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from rlvid.learners.distill import DistillSettings
from rlvid.learners.dpo import DpoSettings
from rlvid.learners.enhancer_settings import EnhancerSettings
from rlvid.learners.rl import RlSettings
from rlvid.learners.sft import SftSettings
from rlvid.plugins import resolve

LEARNERS: Mapping[str, str] = {
    "deepspeed": "rlvid.learners.rl:RlLearner",
    "sleeping": "rlvid.learners.sleeping:SleepingLearner",
}
"""Short name of `learner.worker` to what opens a rank; strings, so that listing imports nothing."""

STAGES: Mapping[str, str] = {
    "few_step": "rlvid.learners.distill_dmd:DmdLearner",
    "causal_teacher": "rlvid.learners.distill_causal_teacher:CausalTeacherLearner",
    "causal_init": "rlvid.learners.distill_causal_init:CausalInitLearner",
    "self_forcing": "rlvid.learners.distill_dmd:DmdLearner",
}
"""Stage of distillation to what opens a rank; causal_init by its method ode."""
CONSISTENCY = "rlvid.learners.distill_consistency:ConsistencyLearner"
"""The same of causal_init by its other method."""


def open_learner(
    settings: RlSettings | SftSettings | DpoSettings | EnhancerSettings | DistillSettings,
) -> Any:
    """Return the rank that the settings ask for; RANK and its kin are in the environment."""
    if isinstance(settings, SftSettings):
        from rlvid.learners.sft import SftLearner

        return SftLearner(settings)
    if isinstance(settings, DpoSettings):
        from rlvid.learners.dpo import DpoLearner

        return DpoLearner(settings)
    if isinstance(settings, EnhancerSettings):
        from rlvid.learners.enhancer import EnhancerLearner

        return EnhancerLearner(settings)
    if isinstance(settings, DistillSettings):
        stages = dict(STAGES)
        if settings.config.causal_init.method == "consistency":
            stages["causal_init"] = CONSISTENCY
        return cast(Any, resolve(settings.stage, stages, where="distillation.stages"))(settings)
    factory = resolve(settings.trainee.learner.worker, LEARNERS, where="learner.worker")
    return cast(Any, factory)(settings)
