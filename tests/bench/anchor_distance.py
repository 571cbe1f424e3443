"""What the realism anchor is for: distance to real clips with and without it. Prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.anchor_distance FOLDER

FOLDER is what `gigavideo_arms --keep` has kept. Policies of two of its arms sample the held-out
prompts; their clips are compared with simulated clips of the same prompts by the Frechet distance
of the shipped video-text network's features (one that took no part in training), and scored by the
realism critic. The distance is taken to simulated clips as they are, and to the same sent through
the VAE: what the VAE blurs is no policy's doing, and outweighs the rest. Beside them: the base,
other simulated clips, and simulated clips sent through the VAE.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlvid.config.loader import load_recipe
from rlvid.data.tiny_world import render_clip
from rlvid.evaluation.frechet import frechet_distance
from rlvid.launch.heldout import heldout_prompts
from rlvid.launch.run import artifacts_of
from rlvid.models.policy import Policy
from rlvid.models.tiny import video_text_folder
from rlvid.models.tiny.video_text_network import VideoTextNetwork
from rlvid.records import Prompt
from rlvid.rewards.critics.adherence import facts_of
from rlvid.rewards.critics.realism import RealismCritic
from tests.bench.gigavideo_arms import RECIPE
from tests.bench.policy_clips import policy_clips, through_vae
from tests.bench.timing import environment, t_interval

REAL_SEED, OTHER_SEED = 5_000_000, 6_000_000
"""Of simulated clips that no training has seen."""
BASE = Policy(model_path="tiny")
WITHOUT, WITH = "weighted", "weighted_and_anchored"
"""Arms that differ in beta alone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="of gigavideo_arms --keep")
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--seeds-per-prompt", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = _Distances(arguments.num_prompts, arguments.seeds_per_prompt)
    seeds = sorted(int(run.name.split("-")[1]) for run in arguments.folder.glob(f"{WITH}-*"))
    runs = {
        arm: [bench.of_policy(artifacts_of(arguments.folder / f"{arm}-{seed}")) for seed in seeds]
        for arm in (WITHOUT, WITH)
    }
    result = {
        "environment": environment(torch.device("cpu")),
        "clips": arguments.num_prompts * arguments.seeds_per_prompt,
        "seeds": seeds,
        "references": bench.references(),
        "arms": runs,
        "with_anchor_less_without": {
            name: _difference(runs[WITH], runs[WITHOUT], name)
            for name in ("distance", "distance_within_reach", "realism")
        },
    }
    print(json.dumps(result, indent=1))


class _Distances:
    """Measures sets of clips of the same prompts against one set of simulated ones."""

    def __init__(self, num_prompts: int, num_seeds: int) -> None:
        self._recipe = load_recipe(RECIPE, ())
        self._prompts = heldout_prompts(self._recipe, num_prompts)
        self._num_seeds = num_seeds
        self._network = VideoTextNetwork.load(video_text_folder()).eval()
        self._critic = RealismCritic(RealismCritic.Config())
        real = self._simulated(REAL_SEED)
        self._real = self._features(real)
        self._within_reach = self._features(through_vae(self._recipe, BASE, real))

    def references(self) -> dict[str, dict[str, float]]:
        """Return the base, and what real clips themselves have."""
        other = self._simulated(OTHER_SEED)
        return {
            "base": self._measure(self._clips_of(BASE)),
            "other_simulated_clips": self._measure(other),
            "simulated_clips_through_vae": self._measure(through_vae(self._recipe, BASE, other)),
        }

    def of_policy(self, artifacts: Any) -> dict[str, float]:
        return self._measure(self._clips_of(artifacts.policy))

    def _clips_of(self, policy: Policy) -> Tensor:
        clips = policy_clips(self._recipe, policy, self._prompts, num_seeds=self._num_seeds)
        return clips.flatten(0, 1)

    def _measure(self, clips: Tensor) -> dict[str, float]:
        scores, features = self._critic.score(clips, self._repeated()), self._features(clips)
        return {
            "distance": round(frechet_distance(features, self._real), 5),
            "distance_within_reach": round(frechet_distance(features, self._within_reach), 5),
            "realism": round(float(scores.mean()), 5),
        }

    def _features(self, clips: Tensor) -> Any:
        with torch.inference_mode():
            return self._network.embed_videos(clips).numpy()

    def _simulated(self, seed: int) -> Tensor:
        clips = [
            render_clip(facts_of(prompt), seed + number)
            for number, prompt in enumerate(self._repeated())
        ]
        return torch.stack(clips)

    def _repeated(self) -> list[Prompt]:
        return [prompt for prompt in self._prompts for _ in range(self._num_seeds)]


def _difference(
    runs: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]], name: str
) -> dict[str, Any]:
    """Return the mean over seeds of the differences, with Student's t."""
    values = [run[name] - other[name] for run, other in zip(runs, others, strict=True)]
    mean = statistics.fmean(values)
    low, high = t_interval(values)
    return {"mean": round(mean, 5), "interval": [round(low, 5), round(high, 5)]}


if __name__ == "__main__":
    main()
