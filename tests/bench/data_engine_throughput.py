"""Clips a second of the data engine against the bare sampling speed of the policy. Prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.data_engine_throughput

Bare: the rollout actors sample the very groups that the engine would render, and nothing else is
done. Engine: the phase as it is, which has every clip decoded, scored, written and listed beside
that. Two ways to count its seconds: while it renders, and the whole phase with the start of its
processes. Where roles sleep, sampling has a GPU of its own, as it were. With the tiny model all
roles share the cores, and what scoring costs is missing from sampling; unless the case says that
the one rollout actor has a core of its own, bare and beside the engine, and all others the second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from rlvid.actors.pool import RolloutPool, SampledGroup
from rlvid.config import Recipe
from rlvid.config.loader import load_recipe
from rlvid.data.engine.manifest import read_summary
from rlvid.data.prompts import load_prompts
from rlvid.launch.cluster import open_cluster
from rlvid.launch.data_engine.plan import PlannedClips, rendering_of
from rlvid.launch.run import artifacts_of
from rlvid.models.policy import Policy
from tests.bench.pinned import sampling_pinned
from tests.bench.timing import environment
from tests.system.conftest import merged

POLICY = Policy(model_path="tiny")
LATENTS = [16, 5, 4, 4]
"""Of a clip of the tiny model, so that sleeping actors give clips that are decoded and written."""
CLIPS_PER_PROMPT = 8
PINNED = "tiny model, two critics, sampling on its own core"


def engine(num_prompts: int, weak: str) -> dict[str, Any]:
    """Return a recipe of the phase alone: the weak dimension is given, no probe is rendered."""
    return {
        "name": "data_engine_throughput",
        "phases": ["data_engine"],
        "rollout": {"num_actors": 2, "guidance_scale": 1.0},
        "data_engine": {
            "weakness": {"given": [{"scorer": weak, "description": "physics"}]},
            "prompts": {"num_prompts": num_prompts, "max_rounds": 200},
            "clips_per_prompt": CLIPS_PER_PROMPT,
            "real": {"source": "none"},
            "num_clips_shown": 0,
        },
    }


def cases(num_prompts: int) -> Mapping[str, dict[str, Any]]:
    """Return the recipes by name."""
    sleeping = {
        "rollout": {
            "worker": "sleeping",
            "worker_options": {"sample_s": 1.0, "latent_shape": LATENTS},
        },
        "rewards": {
            "scorers": [{"use": "sleeping", "name": "asleep", "config": {"score_s": 0.05}}]
        },
        "cluster": {"num_cpus": 16},
    }
    judge = load_recipe("gigavideo_tiny_cpu", ()).rewards.model_dump(mode="json")
    critics = {"rewards": {"scorers": [{"use": "physics"}, {"use": "adherence"}]}}
    return {
        "sleeping roles": merged(engine(num_prompts, "asleep"), sleeping),
        "tiny model, two critics": merged(engine(num_prompts, "physics"), critics),
        PINNED: merged(engine(num_prompts, "physics"), critics, {"rollout": {"num_actors": 1}}),
        "tiny model, embedded VLM judge": merged(
            engine(num_prompts, "physics"), {"rewards": judge}
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--num-prompts", type=int, default=100)
    parser.add_argument("--only", nargs="*", help="names of cases")
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory(prefix="data_engine_") as name:
        for case, tree in cases(arguments.num_prompts).items():
            if arguments.only and case not in arguments.only:
                continue
            with sampling_pinned() if case == PINNED else nullcontext():
                bare = bare_sampling(Recipe.model_validate(tree))
                whole = data_engine(tree, Path(name) / case.replace(" ", "_"))
            overhead = bare["clips_per_s"] / whole["clips_per_s"] - 1.0
            found[case] = {"bare": bare, "engine": whole, "overhead": round(overhead, 3)}
    result = {"environment": environment(torch.device("cpu")), "cases": found}
    print(json.dumps(result, indent=1))


def bare_sampling(recipe: Recipe) -> dict[str, float]:
    """Sample as many groups as the engine renders, of the same size and steps."""
    rendering = rendering_of(recipe, POLICY)
    prompts = load_prompts(recipe.data_engine.broad)
    num_groups = recipe.data_engine.prompts.num_prompts
    with open_cluster(recipe):
        pool = RolloutPool(
            POLICY,
            recipe.model,
            recipe.rollout,
            None,
            num_threads=recipe.cluster.threads_per_role,
            start_deadline_s=600.0,
        )
        began = time.perf_counter()
        pool.start()
        try:
            pool.wait_ready()
            ready = time.perf_counter()
            for place in range(num_groups):
                planned = PlannedClips(
                    place=place,
                    kind="synthetic",
                    prompt=prompts[place % len(prompts)],
                    dimension="",
                    num_clips=CLIPS_PER_PROMPT,
                )
                pool.submit(replace(rendering.task(planned, "bare"), lease_id=f"bare-{place}"))
            num_done = 0
            while num_done < num_groups:
                answers = pool.collect(60.0)
                assert all(isinstance(answer, SampledGroup) for answer in answers), answers
                num_done += len(answers)
            done = time.perf_counter()
        finally:
            pool.shutdown()
    return rates(num_groups * CLIPS_PER_PROMPT, done - ready, done - began)


def data_engine(tree: Mapping[str, Any], run: Path) -> dict[str, float]:
    """Run the phase and return its speed."""
    recipe = run.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump(tree))
    command = [
        sys.executable,
        "-m",
        "rlvid.launch.cli",
        "run",
        str(recipe),
        "--run-folder",
        str(run),
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)
    [folder] = artifacts_of(run).datasets.values()
    made = read_summary(Path(folder))
    rendered = made["render"]["num_rendered"]
    return rates(rendered, made["render"]["wall_s"], made["seconds"])


def rates(num_clips: int, seconds: float, with_start_s: float) -> dict[str, float]:
    return {
        "clips": num_clips,
        "seconds": round(seconds, 2),
        "clips_per_s": round(num_clips / seconds, 3),
        "seconds_with_start": round(with_start_s, 1),
    }


if __name__ == "__main__":
    main()
