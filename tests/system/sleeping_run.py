"""A recipe whose roles sleep instead of computing, so that a run's costs are known in advance."""

from __future__ import annotations

from typing import Any

GROUPS_PER_STEP = 10
SLEEPING: dict[str, Any] = {
    "name": "sleeping",
    "phases": ["grpo"],
    # The smallest clip there is: decoding it costs next to nothing.
    "model": {"num_frames": 1, "height": 8, "width": 8},
    "rollout": {
        "num_actors": 1,
        "group_size": 2,
        "groups_per_step": GROUPS_PER_STEP,
        "num_denoising_steps": 4,
        "num_cpus": 0.1,
        "worker": "sleeping",
        "worker_options": {"sample_s": 0.1, "stage_s": 0.1, "latent_shape": [16, 1, 1, 1]},
    },
    "rewards": {
        "colocate": True,
        "decode_cpus": 0.1,
        "scorers": [{"use": "sleeping", "config": {"score_s": 0.025}, "num_cpus": 0.1}],
    },
    "learner": {
        "worker": "sleeping",
        "mode": "full",
        "num_cpus": 0.1,
        "sleeping": {"train_s": 1.0, "publish_s": 0.0},
    },
    "grpo": {"num_steps": 20, "evaluate_every": 0, "checkpoint": {"every": 1000}},
    "cluster": {"num_cpus": 4},
}
"""A step of 10 groups: 1.0 s of sampling by one actor, 0.5 s of scoring, 1.0 s of training, 0.1 s
until an actor has taken a publish."""
