"""Wan 2.2 A14B's two experts as one policy: each row its own, both trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlvid.config import LoraConfig, ModelConfig
from rlvid.models import load_model
from rlvid.models.lora import adapter_disabled, add_lora, trainable_parameters
from rlvid.models.tiny_families.wan import tiny_experts
from rlvid.models.wan import NUM_TRAIN_TIMESTEPS, WanModel
from rlvid.models.wan_experts import WanExpertsModel
from tests.unit.models.family_checks import FAMILIES

CPU = torch.device("cpu")
CAPTION = "a red ball falls to the left"
CLIP = (9, 32, 32)
HIGH, LOW = 0.9, 0.3
"""On either side of the boundary, 0.875."""


@pytest.fixture
def model() -> WanExpertsModel:
    return tiny_experts()


def latents_of(model: WanExpertsModel, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, *model.latent_shape(*CLIP), generator=generator)


def of_expert(model: WanExpertsModel, name: str, latents: Tensor, sigma: Tensor) -> Tensor:
    """Return the velocity of one expert alone."""
    answer: Tensor = getattr(model.transformer, name)(
        hidden_states=latents,
        timestep=sigma * NUM_TRAIN_TIMESTEPS,
        encoder_hidden_states=model.encode_prompts([CAPTION] * len(latents))["prompt_embeds"],
        return_dict=False,
    )[0]
    return answer


@torch.no_grad()
@pytest.mark.parametrize("levels", [(HIGH, HIGH), (LOW, LOW), (LOW, HIGH, LOW), (0.875, 0.874)])
def test_each_row_is_of_the_expert_of_its_level(
    model: WanExpertsModel, levels: tuple[float, ...]
) -> None:
    """The boundary itself is the high expert's, as in the pipeline."""
    sigma, latents = torch.tensor(levels), latents_of(model, len(levels))
    found = model.velocity(latents, sigma, model.encode_prompts([CAPTION] * len(levels)))
    for row, level in enumerate(levels):
        name = "high" if level >= 0.875 else "low"
        alone = of_expert(model, name, latents[row : row + 1], sigma[row : row + 1])
        torch.testing.assert_close(found[row : row + 1], alone, atol=1e-6, rtol=0.0)


def test_six_levels_ask_both_experts(model: WanExpertsModel) -> None:
    """As many as it is compared with its pipeline at."""
    sigmas = model.sigmas(FAMILIES["wan_experts"].num_steps, *CLIP)
    assert any(s >= 0.875 for s in sigmas)
    assert any(0.0 < s < 0.875 for s in sigmas)


def test_boundary_is_saved_and_loaded(model: WanExpertsModel, tmp_path: Path) -> None:
    model.save(str(tmp_path))
    assert json.loads((tmp_path / "model_index.json").read_text())["boundary_ratio"] == 0.875
    again = load_model(ModelConfig(path=str(tmp_path), use="wan_experts", device="cpu"))
    assert isinstance(again, WanExpertsModel)
    assert again.transformer.boundary_timestep == 875.0


def test_wrong_folders_are_named(model: WanExpertsModel, tmp_path: Path) -> None:
    model.save(str(tmp_path))
    with pytest.raises(ValueError, match=r"two transformers.*model.use to wan_experts"):
        WanModel.load(tmp_path, device=CPU)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"boundary_ratio": None}))
    with pytest.raises(ValueError, match=r"no boundary_ratio.*model.use to wan"):
        WanExpertsModel.load(tmp_path, device=CPU)


@pytest.mark.parametrize(("level", "idle"), [(HIGH, "low"), (LOW, "high")])
def test_idle_expert_takes_part_with_a_gradient_of_zero(
    model: WanExpertsModel, level: float, idle: str
) -> None:
    """Without one a rank would wait for ever in another's all-reduce."""
    add_lora(model.transformer, LoraConfig(rank=2, alpha=4.0))
    latents, sigma = latents_of(model, 1), torch.tensor([level])
    condition = model.encode_prompts([CAPTION])
    velocity = model.velocity(latents, sigma, condition)
    velocity.square().sum().backward()
    for name, parameter in trainable_parameters(model.transformer, "lora").items():
        assert parameter.grad is not None, name
        # A fresh adapter's B is 0, and so is the gradient of its A.
        if ".lora_B." in name:
            assert bool(parameter.grad.any()) == (not name.startswith(idle)), name
    with torch.no_grad():
        assert torch.equal(model.velocity(latents, sigma, condition), velocity)


def test_one_adapter_is_bound_to_both_and_switches_off_in_both(model: WanExpertsModel) -> None:
    latents, sigma = latents_of(model, 2), torch.tensor([HIGH, LOW])
    condition = model.encode_prompts([CAPTION, ""])
    with torch.no_grad():
        base = model.velocity(latents, sigma, condition)
        add_lora(model.transformer, LoraConfig(rank=2, alpha=4.0))
        names = trainable_parameters(model.transformer, "lora")
        assert {name.split(".")[0] for name in names} == {"high", "low"}
        for parameter in names.values():
            parameter.normal_()
        moved = model.velocity(latents, sigma, condition)
        with adapter_disabled(model.transformer):
            assert torch.equal(model.velocity(latents, sigma, condition), base)
    for row in range(2):
        assert (moved[row] - base[row]).abs().max() > 1e-3


def test_kernel_and_checkpointing_reach_both(model: WanExpertsModel, tmp_path: Path) -> None:
    model.save(str(tmp_path))
    loaded = WanExpertsModel.load(tmp_path, device=CPU, attention_backend="native")
    loaded.transformer.enable_gradient_checkpointing()  # type: ignore[operator]
    for expert in loaded.trained_parts().values():
        assert expert.blocks[0].attn1.processor._attention_backend == "native"  # type: ignore[index,union-attr]
        assert expert.gradient_checkpointing
