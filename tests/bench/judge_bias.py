"""Measures the embedded judge's leaning to yes and its sense of time, behind real vLLM.

OMP_NUM_THREADS=1 python -m tests.bench.judge_bias
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from rlvid.config.rewards import ServerConfig
from rlvid.rewards.base import Endpoint
from rlvid.rewards.calibration.clip_sets import ClipSet
from rlvid.rewards.judges.bias import time_report, yes_bias_report
from rlvid.rewards.judges.scorers import VlmJudge
from tests.bench.judge_throughput import started
from tests.bench.timing import environment

SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=96, help="held-out clips of the tiny world")
    options = parser.parse_args()
    true = ClipSet.draw(None, options.clips, seed=SEED, split="heldout")
    with tempfile.TemporaryDirectory(prefix="judge-bias-") as folder:
        server = started(ServerConfig(), Path(folder))
        try:
            status = server.status
            endpoint = Endpoint(
                url=status.url,
                model="judge",
                model_digest=status.model_digest,
                api_key="benchmark",
            )
            config = VlmJudge.Config()
            bias = yes_bias_report(config, [endpoint], true.videos, true.prompts)
            times = {}
            for question in ("physics", "direction", "motion", "colour"):
                judge = VlmJudge(VlmJudge.Config(mode="p_yes", only=(question,)))
                judge.connect([endpoint])
                times[question] = asdict(time_report(judge, true.videos, true.prompts, seed=SEED))
                judge.close()
        finally:
            server.stop()
    result = {
        "command": " ".join(["python -m tests.bench.judge_bias", *sys.argv[1:]]),
        "model_digest": status.model_digest,
        "yes_bias": [asdict(row) for row in bias],
        "shuffled_frames": times,
        "environment": environment(torch.device("cpu")),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
