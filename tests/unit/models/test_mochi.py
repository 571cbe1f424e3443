"""The Mochi adapter, on a tiny random pipeline of diffusers' own classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlvid.models.mochi import MochiModel, linear_quadratic_sigmas
from rlvid.models.tiny_families.mochi import build_model, build_pipeline
from tests.unit.models.family_checks import CPU, FAMILIES
from tests.unit.models.family_pipelines import from_pipeline, sampled

FAMILY = FAMILIES["mochi"]


@pytest.fixture(scope="module")
def model() -> MochiModel:
    return build_model()


def test_folder_that_empties_the_empty_prompt_is_sampled_so_too(tmp_path: Path) -> None:
    """Mochi was trained with no token at all for it; a saved folder must go on saying so."""
    model = MochiModel(build_pipeline(force_zeros_for_empty_prompt=True), device=CPU)
    assert not model.encode_prompts([""])["prompt_mask"].any()
    assert model.encode_prompts([FAMILY.caption])["prompt_mask"].any()
    expected = from_pipeline(FAMILY, model, 3.0, "latent")
    torch.testing.assert_close(sampled(FAMILY, model, 3.0), expected, rtol=0.0, atol=1e-5)
    model.save(str(tmp_path))
    loaded = MochiModel.load(tmp_path, device=CPU)
    assert not loaded.encode_prompts([""])["prompt_mask"].any()


def test_noise_levels_are_linear_and_then_quadratic(model: MochiModel) -> None:
    """Genmo's schedule in its own words: a linear half, then a parabola that goes on as it ends."""
    levels = model.sigmas(64, *FAMILY.clip)
    assert levels == pytest.approx([*linear_quadratic_sigmas(64), 0.0], abs=1e-6)
    steps = [before - after for before, after in zip(levels[:-1], levels[1:], strict=True)]
    assert steps[:32] == pytest.approx([0.025 / 32] * 32, abs=1e-6)
    growth = [after - before for before, after in zip(steps[32:-1], steps[33:], strict=True)]
    assert growth == pytest.approx([growth[0]] * len(growth), abs=1e-6)
    assert growth[0] > 0.0


def test_one_step_is_refused(model: MochiModel) -> None:
    with pytest.raises(ValueError, match="num_steps: Mochi's schedule takes at least 2, got 1"):
        model.sigmas(1, *FAMILY.clip)


def test_scheduler_that_runs_the_other_way_is_refused() -> None:
    """A shared FlowMatch scheduler copied into the folder would sample noise from noise."""
    pipeline = build_pipeline()
    pipeline.scheduler.register_to_config(invert_sigmas=False)
    with pytest.raises(ValueError, match="invert_sigmas is False: expected True"):
        MochiModel(pipeline, device=CPU).sigmas(FAMILY.num_steps, *FAMILY.clip)


@pytest.mark.parametrize("has_statistics", [True, False])
def test_latents_are_normalised_by_the_statistics_of_the_vae(has_statistics: bool) -> None:
    pipeline = build_pipeline()
    pipeline.vae.register_to_config(scaling_factor=2.0)
    mean, std = (torch.tensor(pipeline.vae.config[f"latents_{name}"]) for name in ("mean", "std"))
    if not has_statistics:
        pipeline.vae.register_to_config(latents_mean=None, latents_std=None)
        mean, std = torch.zeros(12), torch.ones(12)
    model = MochiModel(pipeline, device=CPU)
    videos = torch.rand(1, 13, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model.vae.encode(videos.permute(0, 2, 1, 3, 4) * 2.0 - 1.0).latent_dist.mode()
    shape = (1, -1, 1, 1, 1)
    expected = (plain - mean.view(shape)) / std.view(shape) * 2.0
    torch.testing.assert_close(model.encode(videos), expected)


def test_attention_backend_is_refused(model: MochiModel, tmp_path: Path) -> None:
    """diffusers' Mochi calls torch's attention whatever it is told, and says nothing."""
    model.save(str(tmp_path))
    with pytest.raises(ValueError, match="takes no kernel but torch's: expected null, got 'flex'"):
        MochiModel.load(tmp_path, device=CPU, attention_backend="flex")
