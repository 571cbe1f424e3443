"""Measures requests a second of a VLM judge behind real vLLM, through the router; prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.judge_throughput
python -m tests.bench.judge_throughput --shape qwen2.5-vl-7b --load-format dummy \\
    --gpus 1 --frames 16 --side 448

A shape is a checkpoint folder with that architecture's configuration and no weights, which vLLM
fills with random ones (--load-format dummy): times are those of the model, answers are noise. Its
tokenizer is the embedded judge's, with ids moved to where the architecture expects them, so text
is short and nearly all tokens are of pictures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlvid.config.rewards import ServerConfig
from rlvid.models.tiny import vlm_judge_folder
from rlvid.rewards.base import Endpoint
from rlvid.rewards.judges.client import JudgeClient, message
from rlvid.rewards.judges.frames import Layout, Shown, View
from rlvid.rewards.judges.router import Router
from rlvid.rewards.vllm.server import VllmServer
from tests.bench.timing import environment

QUESTION = "Does everything move as real objects do?"
CONCURRENCY = (1, 8, 32)

QWEN25_VL_7B: dict[str, Any] = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128000,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1000000.0,
            "mrope_section": [16, 24, 24],
        },
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "out_hidden_size": 3584,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "in_channels": 3,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
    },
}
"""Qwen2.5-VL-7B's published configuration."""


def write_shape(folder: Path, layers: int | None) -> None:
    """Write a checkpoint folder of the 7B architecture, or of its first layers, without weights."""
    from transformers import Qwen2_5_VLConfig

    shape = json.loads(json.dumps(QWEN25_VL_7B))
    if layers is not None:
        shape["text_config"]["num_hidden_layers"] = layers
        shape["vision_config"] |= {"depth": layers, "fullatt_block_indexes": [layers - 1]}
    tiny = vlm_judge_folder()
    ids = json.loads((tiny / "config.json").read_text())
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = Qwen2_5_VLConfig(**shape, **{name: ids[name] for name in names})
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    config.dtype = torch.bfloat16
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    for file in tiny.iterdir():
        if "token" in file.name or file.suffix == ".jinja" or "processor" in file.name:
            shutil.copy(file, folder / file.name)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        values = json.loads((folder / name).read_text())
        values |= {"patch_size": 14, "size": {"shortest_edge": 3136, "longest_edge": 12845056}}
        (folder / name).write_text(json.dumps(values))


def clips(count: int, view: View, num_frames: int, side: int) -> list[Shown]:
    """Return different clips each time: a cached picture would be no work."""
    rng = np.random.default_rng(0)
    shape = (num_frames, side, side, 3)
    return [
        view.show(rng.integers(0, 256, size=shape, dtype=np.uint8), fps=8.0) for _ in range(count)
    ]


async def measure(endpoint: Endpoint, shown: list[Shown], concurrency: int) -> dict[str, Any]:
    """Ask once about every clip, so many at a time."""
    router = Router()
    router.replace([endpoint])
    client = JudgeClient(router)
    room = asyncio.Semaphore(concurrency)
    seconds: list[float] = []
    tokens: list[int] = []

    async def ask(clip: Shown) -> None:
        async with room:
            started = time.perf_counter()
            found = await client.first_token(message([clip], QUESTION), ("Yes", "No"))
            seconds.append(time.perf_counter() - started)
            tokens.append(found.completion.prompt_tokens)

    await ask(shown[0])  # fetches the ids of the answers
    seconds.clear()
    started = time.perf_counter()
    await asyncio.gather(*(ask(clip) for clip in shown[1:]))
    wall_s = time.perf_counter() - started
    await router.aclose()
    return {
        "concurrent": concurrency,
        "requests": len(seconds),
        "requests_per_s": round(len(seconds) / wall_s, 2),
        "p50_ms": round(1000 * statistics.median(seconds), 1),
        "p95_ms": round(1000 * statistics.quantiles(seconds, n=20)[-1], 1),
        "prompt_tokens": statistics.median(tokens),
        "failed": router.num_failed,
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=("tiny_judge", "qwen2.5-vl-7b"), default="tiny_judge")
    parser.add_argument("--load-format", choices=("auto", "dummy"), default="dummy")
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--side", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--layers", type=int, help="of a shape; a quick check of its width")
    parser.add_argument("--requests", type=int, default=97, help="one of them to warm up")
    return parser.parse_args()


def started(config: ServerConfig, folder: Path) -> VllmServer:
    server = VllmServer(config, name="judge", api_key="benchmark", log_folder=folder)
    server.start()
    while server.status.state == "starting":
        time.sleep(0.5)
        server.check()
    if server.status.state != "ready":
        raise SystemExit(server.status.detail)
    return server


def main() -> None:
    options = parsed()
    is_tiny = options.shape == "tiny_judge"
    with tempfile.TemporaryDirectory(prefix="judge-throughput-") as temporary:
        folder = Path(temporary)
        if not is_tiny:
            write_shape(folder / "model", options.layers)
        config = ServerConfig(
            model="tiny_judge" if is_tiny else str(folder / "model"),
            num_gpus=float(options.gpus),
            max_model_len=4096 if is_tiny else 16384,
            engine_args={} if is_tiny else {"load_format": options.load_format},
            start_deadline_s=900.0,
        )
        server = started(config, folder)
        try:
            status = server.status
            endpoint = Endpoint(
                url=status.url,
                model="judge",
                model_digest=status.model_digest,
                api_key="benchmark",
            )
            layout: Layout = "tiny_judge" if is_tiny else "images"
            shown = clips(
                options.requests * len(CONCURRENCY),
                View(layout=layout, num_frames=None),
                options.frames,
                options.side,
            )
            rows = []
            for number, concurrency in enumerate(CONCURRENCY):
                part = shown[number * options.requests :][: options.requests]
                rows.append(asyncio.run(measure(endpoint, part, concurrency)))
        finally:
            server.stop()
    result = {
        "command": " ".join(["python -m tests.bench.judge_throughput", *sys.argv[1:]]),
        "model": options.shape,
        "layers": "all" if options.layers is None else options.layers,
        "clip": [options.frames, options.side, options.side],
        "layout": layout,
        "start_s": round(status.start_s, 1),
        "rows": rows,
        "environment": environment(torch.device("cuda" if options.gpus else "cpu")),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
