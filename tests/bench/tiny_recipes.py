"""The recipes for GPUs with a tiny model and tiny critics in place of theirs. Prints JSON.

OMP_NUM_THREADS=1 python -m tests.bench.tiny_recipes --keep FOLDER [RECIPE ...]

What is kept is what a recipe says of its method: phases and their order, algorithm, credit, step
plan, noise schedule, guidance, dtype, precision and sharding of the learner, staleness, early stop,
stages. What shrinks is listed in `FEWER`; models and data that are not here are replaced by
`STAND_INS`, GPUs by CPUs. Each recipe runs whole, from its first phase to its report.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import yaml

from rlvid.config import Recipe
from rlvid.config.loader import load_recipe
from rlvid.launch.run import artifacts_of
from tests.bench.timing import environment

RECIPES = (
    "flash_wan2.1_1.3b_1gpu", "flash_wan2.1_1.3b", "longcat_rewards_wan2.1_1.3b",
    "post_train_wan2.1_1.3b", "gigavideo_wan2.1_1.3b", "wan2.1_14b_lora", "wan2.2_a14b",
)  # fmt: skip
FEWER = {
    "num_steps": 2, "batch_size": 4, "num_actors": 2, "num_ranks": 2, "sequence_parallel": 2,
    "groups_per_step": 4, "prompts_per_step": 2, "num_prompts": 4, "evaluate_prompts": 4,
    "seeds_per_prompt": 2, "clips_per_prompt": 2, "num_clips": 16, "evaluate_every": 1,
    "num_bootstrap": 500, "num_pairs": 16, "max_new_tokens": 32, "frames_per_block": 1,
    "num_replicas": 1, "max_replicas": 1, "decode_replicas": 1,
    "num_gpus": 0, "decode_gpus": 0, "object_store_mb": 200,
}  # fmt: skip
"""Most that a setting of this name may be, wherever it stands."""
STAND_INS = {
    "hpsv3": "realism", "video_align": "physics", "clip_score": "adherence",
    "motion_rationality": "adherence", "human_interaction": "camera_motion",
    "instance_preservation": "realism", "mechanics": "physics",
    "heldout_adherence": "attribute_judge", "heldout_physics": "physics_laws",
}  # fmt: skip
"""Critic, by its label or else its `use`, to the one in its place; label and weight stay."""
PHASES = (
    "tiny_base",
    "data_engine",
    "sft",
    "dpo",
    "reward_model",
    "prompt_enhancement",
    "distillation",
)
CLIP = {"num_frames": 17, "height": 32, "width": 32, "fps": 8, "device": "cpu"}
CAPTIONS = (
    "a red ball falls to the left while the camera stays still",
    "a blue box slides to the right while the camera pans left",
)
DEADLINE_S = 1800.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--keep", type=Path, help="folder for the runs; else a temporary one")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="tiny_recipes_") as name,
        redirect_stdout(sys.stderr),  # DeepSpeed talks on stdout
    ):
        folder = arguments.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [run_tiny(recipe, folder) for recipe in arguments.recipes]
    print(json.dumps({"environment": environment(torch.device("cpu")), "recipes": rows}, indent=1))


def run_tiny(name: str, folder: Path) -> dict[str, Any]:
    """Run one recipe whole; return what it came to."""
    file, run = folder / f"{name}.yaml", folder / name
    recipe = tiny_recipe(load_recipe(name), folder)
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    command = [sys.executable, "-m", "rlvid.launch.cli", "run", str(file)]
    began = time.monotonic()
    command += ["--run-folder", str(run)]
    subprocess.run(command, check=True, timeout=DEADLINE_S, stdout=sys.stderr)
    artifacts = artifacts_of(run)
    assert (run / "report.html").exists(), f"{name}: no report"
    steps = _metrics(run)
    return {
        "recipe": name,
        "phases": list(recipe.phases),
        "wall_s": round(time.monotonic() - began, 1),
        "phase_s": {phase: round(value, 1) for phase, value in artifacts.timings_s.items()},
        "grpo_steps": len(steps),
        "ratio_deviation_before_first_update": steps[0]["learner/ratio/max_deviation"]
        if steps
        else None,
        "replay_drift_max": max((m["learner/replay_drift/max"] for m in steps), default=None),
        "grad_norm_min": min((m["learner/grad_norm/total"] for m in steps), default=None),
    }


def _metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["metrics"] for line in lines if "learner/ratio/max_deviation" in line["metrics"]]


def tiny_recipe(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with everything that is not here replaced.

    Args:
        folder: where a model that does not ship may be written.
    """
    tree = recipe.model_dump(mode="json")
    for phase in set(PHASES) - set(recipe.phases):
        tree.pop(phase, None)
    if not recipe.algorithm.data_loss.coefficient:
        tree["algorithm"].pop("data_loss")  # a smaller number of clips would be read by nobody
    for holder, key in _leaves(tree):
        if key in FEWER and isinstance(holder[key], int | float):
            holder[key] = min(holder[key], FEWER[key])
        elif key == "device" and holder[key] == "cuda":
            holder[key] = "cpu"
    tree["model"].update(CLIP, path=_tiny_model(recipe, folder))
    tree["weights"]["transport"] = "object_store"
    tree["cluster"]["address"] = None
    _replace_critics(tree)
    _replace_data(tree)
    return Recipe.model_validate(tree)


def _replace_critics(tree: dict[str, Any]) -> None:
    tree["rewards"]["servers"] = {}
    for scorer in (*tree["rewards"]["scorers"], *tree["evaluate"]["judges"]):
        label = scorer["name"] or scorer["use"]
        use = STAND_INS.get(label) or STAND_INS.get(scorer["use"])
        if use:
            scorer.update(name=label, use=use, server="", config={})


def _replace_data(tree: dict[str, Any]) -> None:
    """Read prompts and clips from the tiny world instead of files, rewrites too."""
    for holder, key in list(_leaves(tree)):
        if key == "source" and str(holder[key]).startswith("~/data"):
            split = "heldout" if "heldout" in holder[key] else "train"
            holder.update(source="tiny_world", split=split)
    if "data_engine" in tree:
        tree["data_engine"]["prompts"].update(writer="grammar", embedder="words", llm={})
        tree["data_engine"]["real"].update(source="tiny_world", intake={})
        for weak in tree["data_engine"]["weakness"]["given"]:
            weak["seed_prompts"] = list(CAPTIONS)
    if "sft" in tree and not tree["sft"]["clips"].startswith("artifact:"):
        tree["sft"]["clips"] = "tiny_world"
    if "prompt_enhancement" in tree:
        enhancement = tree["prompt_enhancement"]
        enhancement["rewriter"].update(model="smollm2", template="tiny_world")
        enhancement["cold_start"]["pairs"] = "tiny_world"
        enhancement["prompts"]["source"] = "tiny_world_vague"


def _leaves(tree: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield every mapping with each of its keys, outermost first."""
    if isinstance(tree, Mapping):
        for key in list(tree):
            yield tree, key  # type: ignore[misc]
            yield from _leaves(tree[key])
    elif isinstance(tree, list):
        for item in tree:
            yield from _leaves(item)


def _tiny_model(recipe: Recipe, folder: Path) -> str:
    """Return the model that ships, or a random one of the recipe's family where none does."""
    if recipe.model.use == "wan":
        return "tiny"
    from rlvid.models.tiny_families.wan import tiny_experts

    path = folder / recipe.model.use
    if not path.exists():
        tiny_experts().save(str(path))
    return str(path)


if __name__ == "__main__":
    main()
