"""`learner.sequence_parallel`: what divides, and who trains videos at all."""

from __future__ import annotations

import pytest

from rlvid.config import LearnerConfig
from rlvid.config.distillation import DistillationConfig
from rlvid.config.enhancement import PromptEnhancementConfig


def test_rows_are_dealt_to_groups_of_ranks() -> None:
    assert LearnerConfig(num_ranks=8).data_parallel == 8
    assert LearnerConfig(num_ranks=8, sequence_parallel=4).data_parallel == 2


def test_the_ranks_must_divide() -> None:
    with pytest.raises(ValueError, match="2 ranks to a clip do not divide num_ranks 3"):
        LearnerConfig(num_ranks=3, sequence_parallel=2)


@pytest.mark.parametrize("section", [DistillationConfig, PromptEnhancementConfig])
def test_only_one_policy_of_videos_is_spread(
    section: type[DistillationConfig | PromptEnhancementConfig],
) -> None:
    learner = {"num_ranks": 2, "sequence_parallel": 2}
    with pytest.raises(ValueError, match=r"learner\.sequence_parallel: .*expected 1"):
        section.model_validate({"learner": learner})
