"""The settings of inference, as sections and as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlvid.config import RolloutConfig
from rlvid.config.errors import ConfigError
from rlvid.config.inference import InferenceConfig, SearchSpace, StepCacheConfig
from rlvid.config.inference_files import load_inference, load_search_space
from rlvid.config.loader import load_recipe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval must be two ascending sigmas"),
        ({"step_cache": {"sigma_range": (0.1, 1.5)}}, "sigma_range must be two ascending sigmas"),
        ({"vae_tile": 64, "vae_stride": 96}, "vae_stride must be at most vae_tile"),
        ({"vae_tile": 512}, "vae_tile is not read by vae whole, but by tiled.* 256; got 512"),
        ({"vae": "sliced", "vae_stride": 96}, "vae_stride is not read by vae sliced"),
        ({"step_cache": {"threshold": 0.1}}, "threshold is not read by kind none, but by first_bl"),
        (
            {"step_cache": {"kind": "first_block", "interval": 4}},
            "interval is not read by kind first_block, but by taylorseer, pyramid_attention",
        ),
        ({"step_cache": {"kind": "taylorseer", "cross_interval": 5}}, "cross_interval is not read"),
        (
            {"compile": "regional", "step_cache": {"kind": "taylorseer"}},
            "compile must be 'none' where step_cache is used, got 'regional' and 'taylorseer'",
        ),
        ({"slim_decoder": "slim", "vae": "tiled"}, "vae must be 'whole' where slim_decoder is"),
        ({"quantize": "none"}, "Extra inputs"),
    ],
)
def test_settings_that_do_not_go_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        InferenceConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"inference": {"batch_prompts": 2}}, "inference.batch_prompts must be 1, got 2"),
        (
            {"inference": {"slim_decoder": "slim"}},
            "inference.slim_decoder must be left out, got 'slim': actors hand latents on",
        ),
        (
            {"inference": {"vae": "tiled"}},
            "inference.vae must be left out, got 'tiled': actors hand latents on. Set model.vae_t",
        ),
        (
            {"guidance_scale": 1.0, "inference": {"guidance_interval": (0.2, 1.0)}},
            "inference.guidance_interval: guidance_scale 1 has no guidance to leave out",
        ),
        (
            {"worker": "sleeping", "inference": {"attention": "native"}},
            "inference must be left out where worker is not 'diffusion', got worker 'sleeping'",
        ),
    ],
)
def test_settings_an_actor_cannot_use_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RolloutConfig.model_validate(section)


def test_lossy_sampling_needs_trained_steps_that_show_its_drift() -> None:
    plan = {"step_plan": {"kind": "ode"}, "initial_noise": "independent"}
    RolloutConfig.model_validate({**plan, "inference": {"attention": "native"}})
    with pytest.raises(ValidationError, match=r"got 'TaylorSeer every 3, order 1': no step is"):
        RolloutConfig.model_validate({**plan, "inference": {"step_cache": {"kind": "taylorseer"}}})


def test_recipe_takes_the_settings_from_yaml_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "fast.yaml"
    path.write_text("name: fast\nrollout: {inference: {guidance_interval: [0.2, 1.0]}}\n")
    recipe = load_recipe(path, ["rollout.inference.step_cache.kind=first_block"])
    assert recipe.rollout.inference.guidance_interval == (0.2, 1.0)
    assert recipe.rollout.inference.step_cache.kind == "first_block"


def test_description_names_what_differs() -> None:
    assert InferenceConfig().describe() == "plain"
    config = InferenceConfig(
        attention="sage",
        step_cache=StepCacheConfig(kind="pyramid_attention"),
        quantise="fp8_dynamic",
        vae="tiled",
        batch_prompts=4,
        prompt_cache="prompts",
    )
    assert config.describe() == (
        "attention sage, pyramid attention 3/4, fp8_dynamic, vae tiled, 4 prompts at once, "
        "prompt cache"
    )
    assert not config.samples_exactly


def test_setting_survives_a_file(tmp_path: Path) -> None:
    config = InferenceConfig(guidance_interval=(0.2, 0.9), quantise="int8_dynamic")
    path = tmp_path / "optimised.json"
    path.write_text(json.dumps({"inference": config.model_dump(mode="json"), "points": []}))
    assert load_inference(path) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("points: []", "no key 'inference': expected what rlvid optimise writes"),
        ("inference: {attentions: native}", "attentions: unknown key; did you mean 'attention'?"),
        ("inference: {compile: blocks}", "compile: expected one of 'none', 'regional', 'full'"),
    ],
)
def test_file_that_is_no_setting_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "optimised.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_inference(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_search_space_keeps_defaults_of_axes_left_out(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("batch_prompts: [1, 2, 8]\nstep_cache: [{}, {kind: taylorseer, interval: 4}]\n")
    space = load_search_space(path)
    assert space.batch_prompts == (1, 2, 8)
    assert [one.interval for one in space.step_cache] == [3, 4]
    assert space.guidance_interval == SearchSpace().guidance_interval


def test_empty_axis_is_refused() -> None:
    with pytest.raises(ValidationError, match="quantise must have at least one value"):
        SearchSpace(quantise=())
