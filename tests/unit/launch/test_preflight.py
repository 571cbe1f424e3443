"""What would fail minutes into a run, or at its end, is refused before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rlvid.launch.demand import demanded
from rlvid.launch.preflight import preflight
from tests.unit.launch.hand_made import recipe

SERVED = {"use": "vlm_judge", "server": "j"}
LORA: dict[str, Any] = {"learner": {"mode": "lora"}}


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"algorithm": {"use": "grop"}}, r"algorithm\.use: unknown name 'grop'.*'grpo'"),
        ({"model": {"use": "wam"}}, r"model\.use: unknown name 'wam'.*'wan'"),
        ({"model": {"path": "/no/such"}}, r"model\.path: no pipeline at '/no/such'"),
        ({"rewards": {"scorers": [{"use": "fizzics"}]}}, r"rewards\.scorers\.0\.use: unknown"),
        ({"evaluate": {"judges": [{"use": "juge"}]}}, r"evaluate\.judges\.0\.use: unknown"),
        ({"prompts": {"source": "none.txt", "split": "all"}}, r"prompts\.source: no such file"),
        ({"prompts": {"split": "all"}}, r"evaluate\.prompts: \d+ held-out prompts are also"),
        ({"evaluate": {"prompts": {"split": "heldout", "limit": 1}}}, "at least 2 held-out"),
        ({"rollout": {"eta": 0.0}}, r"rollout\.eta: no exploration"),
        ({"phases": ["sft", "grpo"], "sft": LORA}, "LoRA on top of a LoRA"),
        ({"sft": {"ema_is_policy": True}, "phases": ["sft"]}, r"sft\.ema_is_policy: there are no"),
        (
            {"evaluate": {"use_ema": True}},
            r"evaluate\.use_ema: the last training phase keeps no .*; set learner\.ema",
        ),
        (
            {"phases": ["reward_model", "evaluate"], "evaluate": {"use_ema": True}},
            r"evaluate\.use_ema: no phase before evaluate trains the policy",
        ),
        (
            {"phases": ["distillation", "evaluate"], "evaluate": {"use_ema": True}},
            r"evaluate\.use_ema: distillation hands on averaged weights.* as the policy itself",
        ),
        (
            {"phases": ["sft", "evaluate"], "evaluate": {"use_ema": True}},
            r"evaluate\.use_ema: .*; set sft\.learner\.ema",
        ),
        (
            {"evaluate": {"num_prompts": 10**5}},
            r"evaluate\.num_prompts: evaluate\.prompts holds 102, got 100000; lower it",
        ),
        (
            {"grpo": {"evaluate_prompts": 103}},
            r"grpo\.evaluate_prompts: evaluate\.prompts holds 102, got 103",
        ),
        (
            {"phases": ["data_engine"], "data_engine": {"weakness": {"num_prompts": 439}}},
            r"data_engine\.weakness\.num_prompts: data_engine\.broad holds 438, got 439",
        ),
        ({"phases": ["sft"], "sft": {"clips": "/no/such"}}, r"sft\.clips: no folder at '/no/such'"),
        ({"phases": ["dpo"], "dpo": {"pairs": "/no/such"}}, r"dpo\.pairs: no folder at '/no/such'"),
        ({"grpo": {"replay": "/no/such"}}, r"grpo\.replay: '/no/such' is no file; name the replay"),
        (
            {"rewards": {"scorers": [SERVED], "servers": {"j": {"model": "/no/such"}}}},
            r"rewards\.servers\.j\.model: no model at '/no/such'",
        ),
        (
            {"rewards": {"scorers": [{**SERVED, "use": "adherence"}], "servers": {"j": {}}}},
            r"rewards\.scorers\.0\.server: 'adherence' asks no model server, got 'j'; leave it out",
        ),
        (
            {"evaluate": {"judges": [{"use": "vlm_judge"}]}},
            r"evaluate\.judges\.0\.server: 'vlm_judge' asks a model server, got ''; name one",
        ),
        ({"learner": {"lora": {"rank": 10**5}}}, r"cluster\.object_store_mb: two publishes of"),
    ],
)
def test_mistake_is_refused_by_its_path(sections: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        preflight(recipe(**sections))
    assert "\n" not in str(caught.value)


def test_media_are_held_against_the_model_family(tmp_path: Path) -> None:
    """An actor would find out when it is asked for the first group."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "p.jsonl").write_text('{"text": "a dog", "media": {"first_frame": "a.png"}}\n')
    given = {"source": str(tmp_path / "p.jsonl"), "split": "all"}
    with pytest.raises(ValueError, match=r"prompts: .* \['first_frame'\]: .* 'wan' expects none"):
        preflight(recipe(prompts=given))
    with pytest.raises(ValueError, match=r"^prompts: prompt .* 'wan_i2v' expects \['first_frame'"):
        preflight(recipe(model={"use": "wan_i2v"}))
    with pytest.raises(ValueError, match=r"evaluate\.prompts: prompt .* has media \[\]"):
        preflight(recipe(model={"use": "wan_i2v"}, prompts=given))


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"phases": ["sft", "grpo", "evaluate"]},
        {"phases": ["sft"], "prompts": {"split": "all"}},
        {"phases": ["grpo"], "prompts": {"split": "all"}, "grpo": {"evaluate_every": 0}},
        {"evaluate": {"use_ema": True}, "learner": {"ema": {}}},
        {"phases": ["evaluate"], "evaluate": {"use_ema": True}},
        {"evaluate": {"num_prompts": 102}, "grpo": {"evaluate_prompts": 102}},
        {"rewards": {"scorers": [{"use": "physics"}, SERVED], "servers": {"j": {}}}},
    ],
)
def test_sound_recipe_passes(sections: dict[str, Any]) -> None:
    """Held-out prompts are looked at only where something is measured on them."""
    preflight(recipe(**sections))


def test_model_folder_is_not_asked_for_where_the_run_builds_it(tmp_path: Path) -> None:
    preflight(recipe(phases=["tiny_base", "sft"], model={"path": str(tmp_path / "none")}))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"transport": "nccl"}, "nccl goes from GPU to GPU, got num_gpus 0 in learner and rollout"),
        ({"transport": "shared_folder"}, "folder goes with transport shared_folder"),
        ({"folder": "somewhere"}, "folder goes with transport shared_folder, got .*object_store"),
    ],
)
def test_transport_that_cannot_be_is_refused(weights: dict[str, Any], expected: str) -> None:
    """Before anything starts, not at the first publish."""
    with pytest.raises(ValueError, match=expected):
        recipe(weights=weights)


def test_no_phases_is_no_recipe() -> None:
    with pytest.raises(ValueError, match="phases must name at least one phase"):
        recipe(phases=[])


def test_ranks_of_the_sft_phase_are_counted() -> None:
    """Its placement group would wait for CPUs that no node has."""
    sft = {"learner": {"num_ranks": 16, "num_gpus": 2}}
    assert demanded(recipe(phases=["sft", "grpo"], sft=sft)) == {"CPU": 16.0, "GPU": 32.0}

    colocated = recipe(phases=["grpo"], sft=sft, rewards={"colocate": True})
    assert demanded(colocated) == {"CPU": 3.0, "GPU": 0.0}


def test_every_scorer_and_judge_counts_with_its_replicas() -> None:
    """An actor, a learner, a decoder, 2 replicas of 2 CPUs, and the judge of evaluation."""
    scorers = [{"use": "physics", "num_replicas": 2, "num_cpus": 2.0, "max_replicas": 3}]
    asked = recipe(rewards={"scorers": scorers})
    assert demanded(asked)["CPU"] == 8.0
    assert demanded(asked, grown=True)["CPU"] == 10.0


def test_adapters_are_merged_so_a_lora_may_follow() -> None:
    """`balance: adapters` hands on plain weights."""
    preflight(recipe(phases=["sft", "grpo"], sft={**LORA, "balance": "adapters"}))
