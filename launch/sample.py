"""One prompt to one clip: by the deterministic sampler of evaluation, or as a student."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlvid.config import ModelConfig
from rlvid.config.inference import InferenceConfig
from rlvid.flow.prompt_condition import prompt_condition
from rlvid.flow.sampler import initial_noise, sample_ode
from rlvid.inference.optimise import optimise
from rlvid.inference.streaming import stream_frames
from rlvid.models.causal_layout import BlockLayout
from rlvid.models.noise_levels import sampling_sigmas
from rlvid.models.policy import Policy, open_policy
from rlvid.models.student import Student, StudentSampling
from rlvid.records import Prompt


@torch.no_grad()
def sample_clip(
    prompt: Prompt,
    policy: Policy,
    model_config: ModelConfig,
    *,
    seed: int,
    num_denoising_steps: int,
    shift: float | None,
    guidance_scale: float,
    inference: InferenceConfig | None = None,
) -> Tensor:
    """Return the clip [T, 3, H, W] in [0, 1] that the policy draws for a prompt from `seed`.

    Args:
        shift: `rollout.shift`; None is the model's own noise levels.
        inference: optimisations; None samples plainly, as the default setting does.

    Raises:
        ValueError: this machine or model cannot run the setting.
    """
    sigmas = sampling_sigmas(shift, model_config, num_denoising_steps)
    model = open_policy(policy, model_config)
    optimised = optimise(model, inference or InferenceConfig())
    shape = model.latent_shape(model_config.num_frames, model_config.height, model_config.width)
    noise = initial_noise(seed, shape)[None].to(model.device)
    with optimised.clip() as clip:
        condition, negative = prompt_condition(
            model, [prompt], shape, encode_prompts=clip.encode_prompts
        )

        def velocity(latents: Tensor, sigma: Tensor) -> Tensor:
            return clip.guided_velocity(latents, sigma, condition, negative, guidance_scale)

        latents = sample_ode(velocity, noise, sigmas)
        return optimised.decode(latents)[0].cpu()


@torch.no_grad()
def sample_student(
    text: str,
    policy: Policy,
    model_config: ModelConfig,
    *,
    seed: int,
    inference: InferenceConfig | None = None,
) -> Tensor:
    """Return the clip [T, 3, H, W] in [0, 1] of a distilled student, at its own levels.

    Args:
        inference: as in `check_student_inference`; None samples plainly.

    Raises:
        ValueError: the policy is no student, or the setting cannot run.
    """
    sampling = student_sampling(policy)
    model = open_policy(policy, model_config)
    optimised = optimise(model, check_student_inference(inference))
    shape = model.latent_shape(model_config.num_frames, model_config.height, model_config.width)
    student = Student(model, sampling, dtype=model_config.dtype)
    with optimised.clip() as clip:
        latents = student.generate([seed], shape, clip.encode_prompts([text]))
    return optimised.decode(latents)[0].cpu()


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """What a stream gives at a time."""

    frames: Tensor
    """[T, 3, H, W] in [0, 1], on the CPU."""
    elapsed_s: float
    """Since the stream was asked for its first frame; the model was loaded before."""


def open_stream(
    text: str,
    policy: Policy,
    model_config: ModelConfig,
    *,
    seed: int,
    num_frames: int | None,
    window_blocks: int | None = None,
    sink_blocks: int = 1,
    inference: InferenceConfig | None = None,
) -> Iterator[Streamed]:
    """Load a causal student and return its frames as they come, for as long as is asked.

    Its first `model.num_frames` are those of `sample_student`, up to rounding. Behind them the
    window rolls (`rolling_layout`).

    Args:
        num_frames: in all; None has no end.
        window_blocks, sink_blocks: as in `rolling_layout`.
        inference: as in `check_student_inference`; None samples plainly.

    Raises:
        ValueError: the policy is no causal student, its model cannot decode a part of a clip, or
            the setting cannot run.
    """
    sampling = student_sampling(policy)
    if sampling.layout is None:
        raise ValueError(
            "sample --stream: the student denoises whole clips: expected one of a causal stage "
            "(causal_init, self_forcing). Leave --stream out"
        )
    model = open_policy(policy, model_config)
    optimised = optimise(model, check_student_inference(inference))
    try:
        decode = optimised.open_stream()
    except ValueError as error:
        raise ValueError(f"sample --stream: {error}. Leave --stream out") from error
    shape = model.latent_shape(model_config.num_frames, model_config.height, model_config.width)
    layout = rolling_layout(
        sampling.layout,
        sampling.layout.num_blocks(shape[1]),
        window_blocks=window_blocks,
        sink_blocks=sink_blocks,
    )
    student = Student(model, replace(sampling, layout=layout), dtype=model_config.dtype)
    with optimised.clip() as clip:
        blocks = student.blocks([seed], shape, clip.encode_prompts([text]), num_blocks=None)
    return _timed(stream_frames(blocks, decode, num_frames=num_frames))


def rolling_layout(
    layout: BlockLayout, trained_blocks: int, *, window_blocks: int | None, sink_blocks: int
) -> BlockLayout:
    """Return a student's layout with a window, so that memory and time per block have an end.

    A layout that was trained with a window keeps it. Of another the window is the trained length,
    with positions counted anew in it: until it is full all is as trained, and it never sees more
    blocks, or later positions, than in training.

    Args:
        trained_blocks: of a clip of the trained length.
        window_blocks: at most `trained_blocks`; None takes them all.
        sink_blocks: first blocks that stay in sight; without one a student that was not trained
            with a window flickers where the first block leaves it.
    """
    if layout.window_blocks is not None:
        return layout
    window = trained_blocks if window_blocks is None else window_blocks
    if not 1 <= window <= trained_blocks:
        raise ValueError(
            f"sample --window: expected 1 to {trained_blocks} blocks, the trained length, got "
            f"{window}"
        )
    return replace(
        layout,
        window_blocks=window,
        sink_blocks=min(sink_blocks, window - 1),
        positions="window",
    )


def check_student_inference(inference: InferenceConfig | None) -> InferenceConfig:
    """Return the setting, the default one for None.

    Raises:
        ValueError: it changes latents, and a student's are as it was trained to make them.
    """
    setting = inference or InferenceConfig()
    if not setting.samples_exactly:
        raise ValueError(
            f"sample --inference: the policy is a distilled student: expected a setting that "
            f"leaves its latents as they are, such as slim_decoder, got {setting.describe()!r}. "
            "Take what rlvid optimise wrote for the student, or leave --inference out"
        )
    return setting


def student_sampling(policy: Policy) -> StudentSampling:
    """Return how the policy is sampled; ValueError when it is no student."""
    sampling = policy.sampling
    if sampling is None:
        raise ValueError(
            f"sample: the policy in {policy.lora_path or policy.model_path!r} has no "
            "sampling.json: expected a student, which the phase distillation makes"
        )
    return sampling


def _timed(frames: Iterator[Tensor]) -> Iterator[Streamed]:
    started = time.perf_counter()
    while True:
        with torch.no_grad():  # not around the yield: it would hold in the caller as well
            part = next(frames, None)
            part = None if part is None else part[0].cpu()
        if part is None:
            return
        yield Streamed(frames=part, elapsed_s=time.perf_counter() - started)
