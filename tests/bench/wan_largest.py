"""The deepest transformer of a width that trains a LoRA for one step on the device."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from rlvid.actors.rollout_worker import RolloutWorker
from rlvid.config import AlgorithmConfig, LearnerConfig, RolloutConfig
from rlvid.launch.folder_parts import count_parameters
from rlvid.launch.model_size import count_trainable
from rlvid.models.lora import add_lora, trainable_parameters
from tests.bench.phase_clock import PhaseClock
from tests.bench.timing import environment
from tests.bench.wan_iteration_plan import LORA, Counts, planned_peaks_gib
from tests.bench.wan_model import DTYPES, BenchSettings, ShapeModel, build_transformer, group_task
from tests.bench.wan_shape import accumulate, learner_batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One depth that was tried."""

    num_layers: int
    num_parameters: int
    """Of the base."""
    trains: bool
    """False: the device was out of memory."""
    planned_peak_gib: float
    train_s: float | None = None
    """Forward, backward and AdamW of one guided latent, the first ever, so not a speed."""
    peak_memory_gib: float | None = None
    """None on a CPU as well."""
    ended_in: str | None = None
    """What the device had no memory for: "build", which takes 4 bytes a parameter before they are
    rounded, "sample" or "step"."""


def find_largest(settings: BenchSettings, most_layers: int | None) -> dict[str, Any]:
    """Double or halve the layers until the device is out of memory, then close in.

    Args:
        most_layers: tried at most; a CPU is out of memory together with its machine.
    """
    tried: dict[int, Trial] = {}

    def trains(num_layers: int) -> bool:
        tried[num_layers] = try_layers(settings, num_layers)
        return tried[num_layers].trains

    found = largest(trains, settings.size.num_layers, most_layers)
    out_of_memory = any(not trial.trains for trial in tried.values())
    return {
        "model": {**asdict(settings.size), "weights": "random", "dtype": settings.dtype},
        "clip": [settings.num_frames, settings.height, settings.width],
        "lora_rank": LORA.rank,
        "largest": asdict(tried[found]) if found else None,
        "ended_by": "out of memory" if out_of_memory else "most_layers",
        "tried": [asdict(trial) for trial in tried.values()],
        "environment": environment(torch.device(settings.device)),
    }


def largest(fits: Callable[[int], bool], start: int, most: int | None = None) -> int:
    """Return the largest number found to fit, 0 for none; less than an eighth below one that not.

    Args:
        fits: of a number true up to some number, and false from there on.
        most: that is asked for.
    """
    number = start if most is None else min(start, most)
    good, bad = 0, None
    while good == 0 or bad is None:
        if fits(number):
            good = number
            if good == most:
                return good
            number = 2 * good if most is None else min(2 * good, most)
        else:
            bad = number
            number = bad // 2
            if number == 0:
                return 0
    while bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def try_layers(settings: BenchSettings, num_layers: int) -> Trial:
    """Try one depth and let go of everything."""
    settings = replace(
        settings,
        size=replace(settings.size, num_layers=num_layers),
        rollout=RolloutConfig(
            shift=3.0,
            group_size=2,
            num_denoising_steps=2,
            guidance_scale=settings.rollout.guidance_scale,
        ),
    )
    counts = _counts(settings)
    clock = PhaseClock(torch.device(settings.device))
    trains = _is_trained(settings, clock)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    peak, last = clock.peak_bytes.get("step"), list(clock.seconds)[-1]
    return Trial(
        num_layers=num_layers,
        num_parameters=counts.transformer,
        trains=trains,
        planned_peak_gib=planned_peaks_gib(settings, counts)["learner"],
        train_s=clock.seconds["step"] if trains else None,
        peak_memory_gib=peak / 2**30 if trains and peak is not None else None,
        ended_in=None if trains else last,
    )


def _counts(settings: BenchSettings) -> Counts:
    """Return the parameters without building them; there is no VAE."""
    empty = build_transformer(settings.size, torch.device("meta"), DTYPES[settings.dtype])
    shapes = {name: tuple(parameter.shape) for name, parameter in empty.named_parameters()}
    return Counts(
        transformer=count_parameters(shapes),
        trained=count_trainable(shapes, LearnerConfig(lora=LORA)),
        vae=0,
    )


def _is_trained(settings: BenchSettings, clock: PhaseClock) -> bool:
    """Build, sample two clips in two steps of which one is trained, and learn from them.

    Sampling takes less memory than learning. False: the device was out of memory.
    """
    config, learner = AlgorithmConfig(), LearnerConfig()
    try:
        with clock.phase("build"):
            model = ShapeModel(settings)
            transformer: Any = model.transformer
            add_lora(transformer, LORA)
            transformer.enable_gradient_checkpointing()
        parameters = list(trainable_parameters(transformer, "lora").values())
        optimizer = torch.optim.AdamW(parameters, lr=learner.optimizer.learning_rate)
        with clock.phase("sample"):
            worker = RolloutWorker(model, settings.clip, actor_id="bench", mode="lora")
            group = worker.sample(group_task(settings.rollout))
        with clock.phase("step"):
            batch = learner_batch(group, config, model.device)
            accumulate(model, batch, config, settings.rollout.guidance_scale)
            torch.nn.utils.clip_grad_norm_(parameters, learner.max_grad_norm)
            optimizer.step()
    except torch.OutOfMemoryError:
        return False
    return True
