"""Measures what a rollout of the shipped model costs on one core; prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.decode_time
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial

import torch

from rlvid.config import ModelConfig
from rlvid.models import load_model
from tests.bench.timing import environment

REPEATS = 30


def best_ms(function: Callable[[], object]) -> float:
    """Return the fastest of a few runs after one to warm up; others may use the machine."""
    function()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return round(1000.0 * min(seconds), 2)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    config = ModelConfig()
    model = load_model(config, device="cpu")
    shape = model.latent_shape(config.num_frames, config.height, config.width)
    result: dict[str, object] = {"clip": [config.num_frames, config.height, config.width]}
    for rows in (1, 8, 16):
        latents = torch.randn(rows, *shape)
        sigma = torch.full((rows,), 0.5)
        condition = model.encode_prompts([""] * rows)
        videos = model.decode(latents)
        result[f"decode_ms_batch_{rows}"] = best_ms(partial(model.decode, latents))
        result[f"encode_ms_batch_{rows}"] = best_ms(partial(model.encode, videos))
        result[f"velocity_ms_batch_{rows}"] = best_ms(
            partial(model.velocity, latents, sigma, condition)
        )
    result["environment"] = environment(torch.device("cpu"))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
