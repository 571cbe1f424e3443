"""A distilled student on the tiny model: block roll-out, its gradient, its files, its stream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.flow.causal_ode import causal_trajectories, ode_schedule
from rlvid.flow.few_step import fresh_noise
from rlvid.flow.self_forcing import roll_out
from rlvid.inference.streaming import stream_frames
from rlvid.launch.sample import rolling_layout
from rlvid.models.causal_cache import BlockCache
from rlvid.models.causal_layout import BlockLayout
from rlvid.models.student import SAMPLING_FILE, Student, StudentSampling
from rlvid.models.wan import WanModel
from rlvid.testing import tiny_model

SIGMAS = (1.0, 0.75, 0.4)
SHAPE = (4, 6, 2, 2)
LAYOUT = BlockLayout(frames_per_block=2)
SEEDS = (3, 4)
TEXTS = ["a red ball falls", "a blue square moves left"]


@pytest.fixture
def model() -> WanModel:
    found = tiny_model(0)
    assert isinstance(found, WanModel)
    found.transformer.requires_grad_(True)
    return found


def student_of(model: WanModel, layout: BlockLayout | None = LAYOUT) -> Student:
    return Student(model, StudentSampling(sigmas=SIGMAS, layout=layout), dtype="float32")


def gradients(model: WanModel) -> dict[str, Tensor]:
    found = {n: p.grad for n, p in model.transformer.named_parameters() if p.grad is not None}
    for parameter in model.transformer.parameters():
        parameter.grad = None
    return found


def test_cached_roll_out_is_the_uncached_masked_forward(model: WanModel) -> None:
    """Each block's last prediction from one forward over the whole clip, without any cache."""
    student, condition = student_of(model), model.encode_prompts(TEXTS)
    with torch.no_grad():
        clean = student.generate(SEEDS, SHAPE, condition)
        assert student.causal is not None
        for block in range(3):
            predicted = latents = student._noise(SEEDS, SEEDS, SHAPE, block, 0)
            for j, level in enumerate(SIGMAS):
                if j:
                    fresh = student._noise(SEEDS, SEEDS, SHAPE, block, j)
                    latents = (1.0 - level) * predicted + level * fresh
                noisy = clean.clone()
                noisy[:, :, 2 * block : 2 * block + 2] = latents
                velocity = student.causal.velocity(
                    noisy, torch.full((2,), level), condition, clean=clean
                )
                predicted = latents - level * velocity[:, :, 2 * block : 2 * block + 2]
            torch.testing.assert_close(
                clean[:, :, 2 * block : 2 * block + 2], predicted, rtol=0.0, atol=1e-5
            )


@pytest.mark.parametrize("exit_step", [0, 1, 2])
def test_gradient_is_of_the_exit_level_of_each_block_and_not_through_the_cache(
    model: WanModel, exit_step: int
) -> None:
    """Equal to that of three forwards of a block each on detached states and a detached past."""
    student, condition = student_of(model), model.encode_prompts(TEXTS)
    assert student.causal is not None
    clean = student.generate(SEEDS, SHAPE, condition, exit_step=exit_step)
    clean.square().sum().backward()
    found = gradients(model)
    cache = student.causal.open_cache(condition)
    for block in range(3):
        latents = student._noise(SEEDS, SEEDS, SHAPE, block, 0)
        for j in range(exit_step):
            with torch.no_grad():
                velocity = student.causal.block_velocity(
                    latents, torch.full((2,), SIGMAS[j]), cache
                )
                predicted = latents - SIGMAS[j] * velocity
            fresh = student._noise(SEEDS, SEEDS, SHAPE, block, j + 1)
            latents = (1.0 - SIGMAS[j + 1]) * predicted + SIGMAS[j + 1] * fresh
        level = torch.full((2,), SIGMAS[exit_step])
        made = latents - SIGMAS[exit_step] * student.causal.block_velocity(latents, level, cache)
        made.square().sum().backward()
        torch.testing.assert_close(made, clean[:, :, 2 * block : 2 * block + 2])
        student.causal.append_block(made.detach(), cache)
    expected = gradients(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


def test_finished_blocks_enter_the_cache_at_sigma_0_with_the_students_own_output(
    model: WanModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, condition = student_of(model), model.encode_prompts(TEXTS)
    causal = student.causal
    assert causal is not None
    appended: list[Tensor] = []
    append = causal.append_block

    def noted(clean: Tensor, cache: BlockCache) -> None:
        assert not clean.requires_grad
        appended.append(clean)
        append(clean, cache)

    monkeypatch.setattr(causal, "append_block", noted)
    clean = student.generate(SEEDS, SHAPE, condition, exit_step=1)
    assert len(appended) == 2  # nobody reads the last one
    assert torch.equal(torch.cat(appended, dim=2), clean[:, :, :4])


@torch.no_grad()
def test_a_clip_does_not_depend_on_its_batch(model: WanModel) -> None:
    for layout in (None, LAYOUT):
        student, condition = student_of(model, layout), model.encode_prompts(TEXTS)
        both = student.generate(SEEDS, SHAPE, condition)
        alone = student.generate(SEEDS[:1], SHAPE, condition.rows(slice(0, 1)))
        torch.testing.assert_close(both[:1], alone, rtol=0.0, atol=1e-5)
        assert torch.equal(both, student.generate(SEEDS, SHAPE, condition))


@torch.no_grad()
def test_rollouts_that_share_their_start_differ_by_their_steps(model: WanModel) -> None:
    """As the groups of RL do with `rollout.initial_noise: shared`."""
    condition = model.encode_prompts(TEXTS[:1] * 2)
    for layout in (None, LAYOUT):
        student = student_of(model, layout)
        one, other = student.generate((3, 3), SHAPE, condition, step_seeds=(1, 2))
        assert not torch.allclose(one, other, atol=1e-2)


@torch.no_grad()
def test_stream_begins_as_the_clip_and_goes_on_in_bounded_memory(
    model: WanModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window rolls behind the trained length; the first frames are those of `generate`."""
    layout = rolling_layout(LAYOUT, 3, window_blocks=None, sink_blocks=1)
    assert layout == replace(LAYOUT, window_blocks=3, sink_blocks=1, positions="window")
    student, condition = student_of(model, layout), model.encode_prompts(TEXTS[:1])
    whole = student_of(model).generate(SEEDS[:1], SHAPE, condition)
    blocks: list[Tensor] = []
    caches: list[BlockCache] = []
    assert student.causal is not None
    open_cache = student.causal.open_cache

    def noted(condition: Condition) -> BlockCache:
        caches.append(open_cache(condition))
        return caches[-1]

    monkeypatch.setattr(student.causal, "open_cache", noted)
    for block in student.blocks(SEEDS[:1], SHAPE, condition, num_blocks=9):
        blocks.append(block)
        assert len(caches[0].kept_blocks) <= 2
    torch.testing.assert_close(torch.cat(blocks[:3], dim=2), whole, rtol=0.0, atol=1e-5)
    assert caches[0].kept_blocks == (0, 7)
    assert not torch.equal(blocks[3], blocks[4])


@torch.no_grad()
def test_frames_of_a_stream_are_those_of_the_whole_decode(model: WanModel) -> None:
    """The decoder is causal, and its cache is what `decode` keeps inside."""
    latents = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    whole = model.decode(latents)
    for sizes in ([2, 2, 2], [1, 3, 2], [6]):
        decode = model.open_stream()
        parts = [decode(part) for part in latents.split(sizes, dim=2)]
        model.decode(latents[:, :, :1])  # another decode between must not disturb it
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0.0, atol=1e-5)
    cut = list(stream_frames(latents.split(2, dim=2), model.open_stream(), num_frames=7))
    assert torch.cat(cut, dim=1).shape[1] == 7
    assert len(list(stream_frames(latents.split(2, 2), model.open_stream(), num_frames=2))) == 1


@torch.no_grad()
def test_causal_trajectories_are_the_students_own_ode(model: WanModel) -> None:
    """States where the student will be asked, ends from a past that is the trajectory's own."""
    student, condition = student_of(model), model.encode_prompts(TEXTS)
    assert student.causal is not None
    schedule = ode_schedule(SIGMAS, 4, 1.0)

    def noise(block: int) -> Tensor:
        return fresh_noise(SEEDS, (4, 2, 2, 2), block)

    made = causal_trajectories(
        student.causal,
        condition,
        model.encode_prompts([""]),
        guidance_scale=2.0,
        sigmas=SIGMAS,
        schedule=schedule,
        noise=noise,
        num_blocks=3,
    )
    assert made.states.shape == (2, 3, *SHAPE)
    torch.testing.assert_close(made.states[:, 0, :, 2:4], noise(1))
    latents = torch.cat([noise(block) for block in range(3)], dim=2)
    negative = model.encode_prompts([""]).expand(2)
    for level, following in zip(schedule[:-1], schedule[1:], strict=True):
        if level in SIGMAS:
            expected = made.states[:, SIGMAS.index(level)]
            torch.testing.assert_close(latents, expected, rtol=0.0, atol=1e-4)
        sigma = torch.full((2,), level)
        conditional, plain = (
            student.causal.velocity(latents, sigma, text, clean=made.clean)
            for text in (condition, negative)
        )
        latents = latents + (following - level) * (plain + 2.0 * (conditional - plain))
    torch.testing.assert_close(latents, made.clean, rtol=0.0, atol=1e-4)


def test_sampling_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert StudentSampling.load(tmp_path) is None
    for layout in (None, LAYOUT, BlockLayout(window_blocks=3, sink_blocks=1, positions="window")):
        sampling = StudentSampling(sigmas=SIGMAS, layout=layout)
        sampling.save(tmp_path)
        assert StudentSampling.load(tmp_path) == sampling
    for wrong in ("{", '{"sigmas": [1.0]}', '{"sigmas": [1.0], "layout": {"frame": 1}}'):
        (tmp_path / SAMPLING_FILE).write_text(wrong)
        with pytest.raises(ValueError, match="does not say how the student is sampled"):
            StudentSampling.load(tmp_path)


def test_a_window_wider_than_training_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 to 3 blocks, the trained length, got 4"):
        rolling_layout(LAYOUT, 3, window_blocks=4, sink_blocks=1)
    trained = replace(LAYOUT, window_blocks=2)
    assert rolling_layout(trained, 3, window_blocks=None, sink_blocks=1) is trained
    assert rolling_layout(LAYOUT, 3, window_blocks=1, sink_blocks=1).sink_blocks == 0


def test_a_whole_clip_student_has_no_blocks(model: WanModel) -> None:
    condition = model.encode_prompts(TEXTS[:1])
    with pytest.raises(ValueError, match="expected the policy of a causal stage"):
        student_of(model, None).blocks(SEEDS[:1], SHAPE, condition, num_blocks=2)


def test_roll_out_runs_no_further_than_it_is_asked(model: WanModel) -> None:
    student, condition = student_of(model), model.encode_prompts(TEXTS[:1])
    assert student.causal is not None
    asked = []

    def noise(block: int, level: int) -> Tensor:
        asked.append(block)
        return fresh_noise([0], (4, 2, 2, 2), block, level)

    with torch.no_grad():
        endless = roll_out(student.causal, condition, SIGMAS, noise=noise, num_blocks=None)
        next(endless)
        next(endless)
    assert max(asked) == 1
