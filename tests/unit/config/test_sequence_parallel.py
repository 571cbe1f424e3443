"""`sequence_parallel` of learner and rollouts: what divides, and who handles videos at all."""

from __future__ import annotations

from typing import Any

import pytest

from rlvid.config import LearnerConfig, RolloutConfig
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


def test_an_actor_asks_for_the_devices_of_all_its_processes() -> None:
    rollout = RolloutConfig(sequence_parallel=4, num_cpus=2.0, num_gpus=1.0)
    assert (rollout.cpus_per_actor, rollout.gpus_per_actor) == (8.0, 4.0)
    assert RolloutConfig(num_gpus=0.5).gpus_per_actor == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_gpus": 0.5}, "2 processes share each clip: expected num_gpus 1, .* got 0.5"),
        ({"num_gpus": 2.0}, "expected num_gpus 1, .* got 2"),
        ({"worker": "sleeping"}, "expected worker 'diffusion', got 'sleeping'"),
        ({"inference": {"quantise": "int8_dynamic"}}, "got 'int8_dynamic'"),
        ({"inference": {"compile": "regional"}}, "got 'compile regional'"),
        ({"inference": {"attention": "flash"}}, "got 'attention flash'"),
        ({"inference": {"step_cache": {"kind": "first_block"}}}, "got 'first-block cache 0.05'"),
    ],
)
def test_processes_of_an_actor_have_whole_devices_and_plain_forwards(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutConfig.model_validate({"sequence_parallel": 2, **settings})


def test_inference_around_the_transformer_goes_with_several_processes() -> None:
    around = {"prompt_cache": "prompts", "guidance_interval": (0.3, 1.0)}
    RolloutConfig.model_validate({"sequence_parallel": 2, "inference": around})
