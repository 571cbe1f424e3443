"""Text encoders on a device of their own: prompts are encoded there, and conditions come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlvid.config import ModelConfig, Recipe
from rlvid.launch.host_memory import texts_apart
from rlvid.launch.memory import actor_memory, learner_memory
from rlvid.launch.model_size import read_model_size
from rlvid.models import MODELS
from rlvid.plugins import resolve
from tests.unit.models.family_checks import FAMILIES, build

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")
NAMES = [name for name in FAMILIES if name not in ("cosmos_first_frame", "wan_flf2v")]


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_encoded_there_and_their_conditions_are_with_the_model(
    name: str, tmp_path: Path
) -> None:
    """On the meta device nothing has values: an encoder that was moved along would have none."""
    family = FAMILIES[name]
    model = build(family)
    model.save(str(tmp_path / "folder"))
    adapter: Any = resolve(family.use, MODELS, where="use")
    loaded = adapter.load(tmp_path / "folder", device=CPU, text_encoder_device=CPU)
    loaded._place(loaded._pipeline, ELSEWHERE, CPU)  # as `load` does with a device that has values
    loaded.device = ELSEWHERE
    apart, plain = (one.encode_prompt(family.caption) for one in (loaded, model))
    for key, tensor in plain.tensors.items():
        assert torch.equal(apart[key], tensor)
    kept = loaded.encode_prompts([family.caption])
    assert {tensor.device.type for tensor in kept.tensors.values()} == {"meta"}
    assert {parameter.device.type for parameter in loaded.transformer.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in loaded.vae.parameters()} == {"meta"}


def test_planner_has_them_in_ram() -> None:
    """Wan 2.1's UMT5 in bfloat16: 10.6 GiB less on the GPUs of actor and learner rank."""
    plain = {"path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "dtype": "bfloat16", "num_frames": 81}
    recipes = [
        Recipe.model_validate({"name": "r", "model": {**plain, **own, "height": 480, "width": 832}})
        for own in ({}, {"text_encoder_device": "cpu"})
    ]
    size = read_model_size(recipes[0].model, recipes[0].learner)
    for memory in (actor_memory, learner_memory):
        there, apart = (memory(recipe, size)["weights"] for recipe in recipes)
        assert (there - apart) / 1024 == pytest.approx(10.6, abs=0.1)
    assert texts_apart(recipes[0], size) == {}
    assert texts_apart(recipes[1], size)["text encoders"] / 1024 == pytest.approx(10.6, abs=0.1)


def test_recipe_names_the_device() -> None:
    assert ModelConfig(text_encoder_device="cpu").text_encoder_device == "cpu"
    assert ModelConfig().text_encoder_device is None
