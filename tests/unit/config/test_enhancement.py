"""The `prompt_enhancement` section."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from rlvid.config.enhancement import LengthConfig, PromptEnhancementConfig


def test_an_empty_section_is_a_run_with_every_part_of_the_reward() -> None:
    config = PromptEnhancementConfig()
    reward = config.reward
    assert min(reward.video_weight, reward.structure_weight, reward.length_weight) > 0.0
    assert config.group_size >= 2


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValidationError, match="min_words must be at most max_words 10, got 20"):
        LengthConfig(min_words=20, max_words=10)
    with pytest.raises(ValidationError, match="group_size"):
        PromptEnhancementConfig(group_size=1)
    with pytest.raises(ValidationError, match="temperatur_"):
        PromptEnhancementConfig.model_validate({"rewriter": {"temperatur_": 1.0}})


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        ({"zero_stage": 3}, "zero_stage: 3 shards"),
        ({"ema": {}}, "keeps no average"),
        ({"worker": "sleeping"}, "one worker"),
        ({"activation_checkpointing": True}, "micro_batch_rows"),
    ],
)
def test_what_the_rewriters_learner_cannot_do_is_refused(
    learner: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        PromptEnhancementConfig.model_validate({"learner": learner})
