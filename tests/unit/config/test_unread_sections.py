"""Settings of data, rewards, cluster and storage that nothing would read are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from rlvid.config import Recipe

VIDEOS = {"source": "videos", "intake": {"sources": ["clips"]}}
URLS = {"urls": ["http://127.0.0.1:1"]}
ASKS = {"use": "vlm_judge", "server": "j"}
VLM = {"use": "vlm", "path": "tiny_judge"}


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"name": "unread", **sections})


def real(**changes: Any) -> dict[str, Any]:
    return {"data_engine": {"real": {**VIDEOS, **changes}}}


def scorers(*entries: dict[str, Any], **servers: dict[str, Any]) -> dict[str, Any]:
    return {"rewards": {"scorers": [{"use": "physics"}, *entries], "servers": servers}}


def sampler(**settings: Any) -> dict[str, Any]:
    return {"prompt_enhancement": {"sampler": settings}}


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (real(intake={"sources": ["a"], "max_clips": 10}), "intake.max_clips: .* got 10; set num_"),
        (real(intake={}), "intake.sources: source 'videos' needs folders or files"),
        (real(intake={"sources": ["a"], "max_text_area": 0.1}), "intake.max_text_area: nothing me"),
        (real(source="tiny_world"), "intake is not read by source tiny_world, but by videos"),
        (real(clip_seed=1), "clip_seed is not read by source videos, but by tiny_world"),
        (real(source="none", intake={}, num_clips=9), "num_clips is not read by source none"),
        (real(source="none", intake={}, num_recaptions=2), "num_recaptions is not read by source"),
        (
            {"data_engine": {"prompts": {"llm": {"url": "http://a"}}}},
            "prompts.llm is not read where neither writer nor plausibility is llm",
        ),
        (
            {"cluster": {"address": "auto", "num_cpus": 8}},
            "num_cpus: is of a cluster that the run starts, got 8 with address 'auto'; give it to "
            "`ray start`, and leave it out",
        ),
        ({"cluster": {"address": "auto", "metrics_port": 8080}}, "metrics_port: is of a cluster"),
        ({"cluster": {"num_cpus": 0}}, "greater than or equal to 1"),
        (
            scorers({"use": "realism", "num_replicas": 3, "max_replicas": 2}),
            "max_replicas must be at least num_replicas 3, got 2",
        ),
        (scorers(ASKS, j={**URLS, "num_gpus": 1}), "num_gpus: is of a server that the pool starts"),
        (scorers(ASKS, j={**URLS, "env": {"A": "b"}}), "env: is of a server that the pool starts"),
        (scorers(ASKS, j={"api_key_env": "KEY"}), "api_key_env: is of a server that somebody else"),
        (scorers(ASKS, j={}, spare={}), "rewards.servers.spare: no scorer, no judge and no data_"),
        (
            {"evaluate": {"judges": [ASKS]}},
            "evaluate.judges.0.server: no server 'j' in rewards.servers; there: none",
        ),
        ({"storage": {"keep_groups": False, "max_mb": 1.0}}, "max_mb is not read where keep_group"),
        ({"grpo": {"early_stop": {"patience": 3}}}, "patience is not read where judge_falls is"),
        (sampler(concurrency=2), "concurrency is not read by kind transformers, but by vllm"),
        (sampler(server={"num_replicas": 2}), "server is not read by kind transformers"),
        (sampler(kind="vllm", server={"max_images": 1}), "server.max_images: the server is the ph"),
        (
            {"prompt_enhancement": {"algorithm": {"advantage": {"best_of_n": 6}}}},
            "algorithm.advantage.best_of_n must be at most group_size 4, got 6",
        ),
        ({"reward_model": {"head": "spread", "tie_k": 2.0}}, "tie_k is not read by head spread"),
        ({"reward_model": {"backbone": {"sample_fps": 2.0}}}, "sample_fps is not read by kind vid"),
        ({"reward_model": {"backbone": {**VLM, "width": 8}}}, "width is not read by kind vlm, but"),
        (
            {"reward_model": {"backbone": {**VLM, "lora": {"rank": 2}}}},
            "lora is not read where train is full, but where it is lora",
        ),
        (
            {"reward_model": {"pairs": {"source": "pairs", "weak": {"tie_pairs": 2}}}},
            "weak is not read by source 'pairs', but by 'weak'",
        ),
    ],
)
def test_setting_that_nothing_reads_is_refused(sections: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        recipe(**sections)
    assert re.search(expected, str(caught.value))


@pytest.mark.parametrize(
    "sections",
    [
        real(),
        real(source="none", intake={}),
        {"cluster": {"address": "auto", "object_store_mb": 4096}},
        scorers(ASKS, j={**URLS, "model": "judge", "api_key_env": "KEY", "start_deadline_s": 9.0}),
        scorers(ASKS, {**ASKS, "name": "more", "max_replicas": 2}, j={"num_gpus": 1.0}),
        {"phases": ["own.phases:Asks"], **scorers(spare={})},
        {"storage": {"keep_groups": False}},
        sampler(kind="vllm", concurrency=2, server={"num_replicas": 2}),
        {"reward_model": {"backbone": {**VLM, "train": "lora", "lora": {"rank": 2}}}},
    ],
)
def test_what_is_read_passes_and_so_does_the_resolved_recipe(sections: dict[str, Any]) -> None:
    """The recipe that a run writes down names every key."""
    accepted = recipe(**sections)
    assert Recipe.model_validate(accepted.model_dump()) == accepted
