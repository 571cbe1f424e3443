"""Settings of the learner that a phase would not look at."""

from __future__ import annotations

from typing import Any

import pytest

from rlvid.config import LearnerConfig, OfflineDpoConfig, SftConfig
from rlvid.config.base import Section
from rlvid.config.distillation import DistillationConfig
from rlvid.config.enhancement import PromptEnhancementConfig
from rlvid.config.loader import check, default_values
from rlvid.config.recipe import Recipe

SECTIONS = (SftConfig, OfflineDpoConfig, DistillationConfig, PromptEnhancementConfig)


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize(
    ("learner", "message"),
    [
        ({"crash_budget": 9}, r"learner\.crash_budget: is of the learner of grpo; .*is resumed"),
        ({"crash_window_s": 60.0}, r"learner\.crash_window_s: .* default, 1800.0, got 60.0"),
        ({"check_parameters_every": 1}, r"learner\.check_parameters_every: .* compares no"),
        ({"chunk_groups": 2}, r"learner\.chunk_groups: .* takes each batch as a whole"),
        ({"replay": "batched"}, r"learner\.replay: .* has no denoising steps to r"),
        ({"sleeping": {"train_s": 2.0}}, "sleeping is not read by worker deepspeed"),
        ({"worker": "sleeping"}, r"learner\.worker: "),
    ],
)
def test_setting_of_grpos_learner_is_refused_elsewhere(
    learner: dict[str, Any], message: str, section: type[Section]
) -> None:
    with pytest.raises(ValueError, match=message):
        section.model_validate({"learner": learner})


@pytest.mark.parametrize("section", [SftConfig, DistillationConfig])
def test_an_adapter_needs_the_mode(section: type[Section]) -> None:
    """Both are full by default, and the adapter would not be there."""
    with pytest.raises(ValueError, match=r"learner\.lora: is of mode lora.* Set learner\.mode"):
        section.model_validate({"learner": {"mode": "full", "lora": {"rank": 4}}})


def test_random_weights_are_no_base_of_an_adapter() -> None:
    """It is exported without them."""
    learner = LearnerConfig(mode="lora")
    with pytest.raises(ValueError, match="initialise: starts from random .* got 'lora'"):
        SftConfig(initialise=True, learner=learner)


def test_written_out_defaults_of_every_place_are_no_settings() -> None:
    check({**default_values(Recipe), "name": "a"})
