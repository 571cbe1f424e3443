"""Distances and times of a setting on a tiny real model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rlvid.config.inference import InferenceConfig, StepCacheConfig
from rlvid.flow.sigmas import shifted_sigmas
from rlvid.inference.measure import PSNR_OF_EQUALS, Bench, Job, Judges, psnr_db, sample_clips
from rlvid.inference.optimise import optimise
from rlvid.inference.search import LeftOut, Point
from rlvid.models.base import VideoModel
from rlvid.records import Prompt


@pytest.fixture
def job(model: VideoModel) -> Job:
    return Job(
        prompts=tuple(Prompt(prompt_id=text, text=text) for text in ("a red ball", "a blue box")),
        num_seeds=2,
        latent_shape=model.latent_shape(9, 16, 16),
        sigmas=shifted_sigmas(4, 3.0),
        guidance_scale=3.0,
        repeats=1,
    )


@pytest.fixture
def bench(model: VideoModel, job: Job) -> Bench:
    def brightness(clips: Tensor, prompts: Sequence[Prompt]) -> float:
        assert len(clips) == len(prompts) == job.num_clips
        return float(clips.mean())

    return Bench(model, job, Judges(features=lambda clips: clips.flatten(1), reward=brightness))


def test_psnr_is_of_the_mean_squared_error_of_each_clip() -> None:
    reference = torch.full((3, 2, 3, 4, 4), 0.5)
    clips = reference.clone()
    clips[1] += 0.1
    clips[2, 0] += 0.1
    found = psnr_db(clips, reference)
    torch.testing.assert_close(
        found, torch.tensor([PSNR_OF_EQUALS, 20.0, 23.0103]).double(), rtol=1e-4, atol=1e-4
    )


def test_equal_setting_has_no_distance(bench: Bench) -> None:
    found = bench.measure(InferenceConfig(attention="native"))
    assert isinstance(found, Point)
    assert found.psnr_db == PSNR_OF_EQUALS
    assert found.reward_change == 0.0
    assert found.feature_distance < 1e-6  # a cosine of equal vectors rounds
    assert found.seconds > 0.0


def test_cached_steps_have_a_distance_and_the_model_is_given_back(
    bench: Bench, model: VideoModel, job: Job
) -> None:
    before = sample_clips(optimise(model, InferenceConfig()), job)
    config = InferenceConfig(step_cache=StepCacheConfig(kind="first_block", threshold=1e6))
    found = bench.measure(config)
    assert isinstance(found, Point)
    assert 10.0 < found.psnr_db_min <= found.psnr_db < PSNR_OF_EQUALS
    assert torch.equal(sample_clips(optimise(model, InferenceConfig()), job), before)


def test_setting_that_cannot_run_is_left_out_with_its_reason(bench: Bench) -> None:
    found = bench.measure(InferenceConfig(attention="flash"))
    assert isinstance(found, LeftOut)
    assert "a CUDA device, got cpu" in found.reason


def test_prompts_in_one_batch_are_the_same_clips(model: VideoModel, job: Job) -> None:
    """Matrix products of another batch size round elsewhere; 1e-5 over 4 steps."""
    alone = sample_clips(optimise(model, InferenceConfig()), job)
    together = sample_clips(optimise(model, InferenceConfig(batch_prompts=2)), job)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
