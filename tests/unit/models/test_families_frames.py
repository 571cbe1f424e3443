"""Of every family that is told frames beside the prompt: whose they are, and what a held one is."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from rlvid.condition import Condition
from rlvid.config import RolloutConfig
from rlvid.flow.sampler import sample_group
from rlvid.flow.sde import sde_step
from rlvid.flow.step_plans import make_step_plan
from rlvid.models.given_frames import FIRST_FRAME_LATENTS
from tests.unit.models.family_checks import FOLDERS, build, condition_of, frames, noise

SHOWN = [name for name, family in FOLDERS.items() if family.is_shown_frames]
HELD = ["cosmos_first_frame", "wan_ti2v"]
"""Those that may be told a first frame, and hold it."""
NEED = [name for name in SHOWN if name not in (*HELD, "wan_vace")]
"""Those that have no velocity for a text alone."""


@cache
def opened(name: str) -> Any:
    return build(FOLDERS[name])


def told(name: str, text: str | None = None) -> Condition:
    family = FOLDERS[name]
    return condition_of(family, opened(name), [family.caption if text is None else text])


@pytest.mark.parametrize("name", SHOWN)
def test_rows_of_a_batch_have_pictures_of_their_own(name: str) -> None:
    """Pictures of B clips may lie one behind the other in the transformer; they must not mix."""
    family, model = FOLDERS[name], opened(name)
    pictures = frames(family, model)
    both = {kind: torch.cat([one, one.flip(-1)]) for kind, one in pictures.items()}
    together = model.encode_prompts([family.caption] * 2) | model.encode_media(both, family.clip[0])
    latents, sigma = noise(family, model).expand(2, -1, -1, -1, -1), torch.tensor([0.7, 0.7])
    with torch.no_grad():
        batched = model.velocity(latents, sigma, together)
        alone = [model.velocity(latents[:1], sigma[:1], together.rows([n])) for n in range(2)]
    assert not torch.allclose(batched[0], batched[1], atol=1e-3)
    torch.testing.assert_close(batched, torch.cat(alone), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("name", NEED)
def test_text_alone_is_refused(name: str) -> None:
    """Zeros for the picture would make it a text-to-video model that nobody trained."""
    family, model = FOLDERS[name], opened(name)
    needed = r", ".join(f"'{kind}'" for kind in sorted(model.required_media))
    message = rf"the condition is of a text alone: expected that of \[{needed}\]"
    with pytest.raises(ValueError, match=message):
        model.velocity(
            noise(family, model), torch.tensor([0.7]), model.encode_prompts([family.caption])
        )


@pytest.mark.parametrize("name", HELD)
def test_first_frame_is_held_through_stochastic_steps(name: str) -> None:
    """Noise is added there as anywhere, and led back: the video begins with the given frame."""
    family, model = FOLDERS[name], opened(name)
    config = RolloutConfig(group_size=2, num_denoising_steps=6, shift=3.0, guidance_scale=1.0)
    plan = make_step_plan(config, recipe_seed=0, prompt_id="p", step=0)
    assert plan.stochastic_steps
    condition = told(name)
    seeds = [3 if plan.num_noises == 1 else 3 + n for n in range(2)]
    sample = sample_group(
        lambda latents, sigma: model.velocity(latents, sigma, condition.expand(len(latents))),
        plan,
        noise_seeds=seeds,
        step_seeds=(5, 6),
        latent_shape=model.latent_shape(*family.clip),
    )
    first = condition[FIRST_FRAME_LATENTS].expand(2, -1, -1, -1, -1)
    torch.testing.assert_close(sample.latents[:, :, :1], first, atol=1e-6, rtol=0.0)
    assert not torch.allclose(sample.latents[0], sample.latents[1], atol=1e-3)


@pytest.mark.parametrize("name", HELD)
def test_ratio_and_gradient_are_of_the_other_frames_alone(name: str) -> None:
    """What is recorded for the held frame is the same transition whoever speaks."""
    family, model = FOLDERS[name], opened(name)
    config = RolloutConfig(group_size=2, num_denoising_steps=6, shift=3.0)
    noise_of_plan = make_step_plan(config, recipe_seed=0, prompt_id="p", step=0).noise
    latents, (sigma, sigma_next) = noise(family, model), torch.tensor([[0.8], [0.6]])
    one, other = (model.velocity(latents, sigma, told(name, text)) for text in (None, ""))
    drawn = torch.randn(latents.shape, generator=torch.Generator().manual_seed(4))
    taken = sde_step(one, latents, sigma, sigma_next, noise=noise_of_plan, step_noise=drawn)
    scored = sde_step(
        other,
        latents,
        sigma,
        sigma_next,
        noise=noise_of_plan,
        next_latents=taken.next_latents.detach(),
    )
    assert torch.equal(scored.mean[:, :, 0], taken.mean[:, :, 0])
    assert not torch.allclose(scored.mean[:, :, 1:], taken.mean[:, :, 1:], atol=1e-4)
    weight = model.transformer.get_parameter("proj_out.weight")
    (gradient,) = torch.autograd.grad(one[:, :, 0].sum(), weight)
    assert not gradient.any()


@pytest.mark.parametrize("name", HELD)
def test_noise_on_the_held_frame_is_never_seen(name: str) -> None:
    latents, sigma = noise(FOLDERS[name], opened(name)), torch.tensor([0.7])
    changed = latents.clone()
    changed[:, :, 0] += 1.0
    with torch.no_grad():
        one, other = (opened(name).velocity(x, sigma, told(name)) for x in (latents, changed))
    assert torch.equal(one[:, :, 1:], other[:, :, 1:])
    torch.testing.assert_close(
        other[:, :, 0] - one[:, :, 0], torch.full_like(one[:, :, 0], 1 / 0.7)
    )
