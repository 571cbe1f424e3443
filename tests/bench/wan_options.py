"""Options that the benchmarks of Wan's shape have in common, and the settings they make."""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from rlvid.config import RolloutConfig
from tests.bench.wan_flops import SIZES, WanSize
from tests.bench.wan_model import DTYPES, BenchSettings

TINY_CLIP = (5, 32, 32)


def shape_parser(doc: str | None, *, frames: int, repeats: int) -> argparse.ArgumentParser:
    """Return a parser of the model's shape, the clip and the device.

    Args:
        doc: the script's, whose first line says what it does.
        frames, repeats: defaults.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    parser.set_defaults(default_frames=frames)
    parser.add_argument("--size", choices=sorted(SIZES), default="1.3b")
    parser.add_argument("--frames", type=int, help=f"pixel frames; {frames}, or 5 for tiny")
    parser.add_argument("--height", type=int, help="pixels; 480, or 32 for tiny")
    parser.add_argument("--width", type=int, help="pixels; 832, or 32 for tiny")
    parser.add_argument("--layers", type=int, help="other than the size has")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--initial-noise", choices=["shared", "independent"], default="shared")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--name", help="of the file in results/; made of the settings if absent")
    return parser


def shape_settings(given: argparse.Namespace, rollout: RolloutConfig) -> BenchSettings:
    """Return the settings of parsed options; the tiny size is measured on the CPU."""
    size: WanSize = SIZES[given.size]
    is_tiny = given.size == "tiny"
    frames, height, width = TINY_CLIP if is_tiny else (given.default_frames, 480, 832)
    return BenchSettings(
        size=replace(size, num_layers=given.layers or size.num_layers),
        num_frames=given.frames or frames,
        height=given.height or height,
        width=given.width or width,
        dtype=given.dtype,
        device="cpu" if is_tiny else given.device,
        rollout=rollout,
        repeats=given.repeats,
    )


def result_name(settings: BenchSettings) -> str:
    """Return "cuda_wan2.1-t2v-1.3b_81f_bfloat16" and the like."""
    kind = torch.device(settings.device).type
    return f"{kind}_{settings.size.name}_{settings.num_frames}f_{settings.dtype}"
