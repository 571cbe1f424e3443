"""Measures the embedded judge's leaning to yes and its sense of time, behind real vLLM.

OMP_NUM_THREADS=1 python -m tests.bench.judge_bias > tests/bench/results/vllm_judge_bias.json
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

import torch

from rlvid.rewards.calibration.clip_sets import ClipSet
from rlvid.rewards.judges.bias import time_report, yes_bias_report
from rlvid.rewards.judges.scorers import VlmJudge
from rlvid.rewards.vllm.standalone import own_server
from tests.bench.timing import environment

SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=96, help="held-out clips of the tiny world")
    options = parser.parse_args()
    true = ClipSet.draw(None, options.clips, seed=SEED, split="heldout")
    with own_server() as endpoint:
        bias = yes_bias_report(VlmJudge.Config(), [endpoint], true.videos, true.prompts)
        times = {}
        for question in ("physics", "direction", "motion", "colour"):
            judge = VlmJudge(VlmJudge.Config(mode="p_yes", only=(question,)))
            judge.connect([endpoint])
            times[question] = asdict(time_report(judge, true.videos, true.prompts, seed=SEED))
            judge.close()
    result = {
        "command": " ".join(["python -m tests.bench.judge_bias", *sys.argv[1:]]),
        "model_digest": endpoint.model_digest,
        "yes_bias": [asdict(row) for row in bias],
        "shuffled_frames": times,
        "environment": environment(torch.device("cpu")),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
