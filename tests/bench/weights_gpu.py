"""Measures a push of a model of Wan-1.3B's size into a GPU's spare buffer; prints JSON.

python -m tests.bench.weights_gpu

2.8 GB of bf16 in host buckets, as the object store maps them: hashed, copied to the device,
swapped; then the digest of the live parameters, which in a run passes beside the sampling.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import torch
from torch import nn

from rlvid.weights import WeightsHolder, base_digest, manifest_digest, pack, trainable_parameters
from tests.bench.timing import environment

ROUNDS = 6
SIDE = 1024


def module(num_tensors: int) -> nn.Module:
    """Return a module of that many bf16 tensors of 2 MiB on the GPU."""
    built = nn.Module()
    for index in range(num_tensors):
        value = torch.randn(SIDE, SIDE, device="cuda").to(torch.bfloat16)
        built.register_parameter(f"p{index:05d}", nn.Parameter(value))
    return built


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tensors", type=int, default=1340)
    parser.add_argument("--threads", type=int, default=4)
    arguments = parser.parse_args()
    model = module(arguments.tensors)
    manifest, buckets = pack(
        trainable_parameters(model, "full"),
        version=0,
        parent_version=-1,
        kind="full",
        base_digest=base_digest(model, "full"),
    )
    holder = WeightsHolder(model, mode="full", actor_id="bench", num_threads=arguments.threads)
    rounds = []
    for version in range(ROUNDS):
        changed = replace(manifest, version=version)
        changed = replace(changed, digest=manifest_digest(changed))
        began = time.perf_counter()
        holder.stage(changed, buckets)
        stage_s = time.perf_counter() - began
        swap_s = holder.swap()
        torch.cuda.synchronize()
        push_s = time.perf_counter() - began
        began = time.perf_counter()
        holder.check_live()
        live_digest_s = time.perf_counter() - began
        rounds.append(
            {
                "stage_s": stage_s,
                "swap_s": swap_s,
                "push_s": push_s,
                "live_digest_s": live_digest_s,
            }
        )
    found = {
        "environment": environment(torch.device("cuda")),
        "gb": manifest.num_bytes / 1e9,
        "threads": arguments.threads,
        "rounds": rounds,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
