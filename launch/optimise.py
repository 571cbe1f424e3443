"""Opens a policy and what judges it, and searches its fastest setting near the plain clips.

Prompts are the first held-out ones of the recipe, steps and guidance those of its evaluation,
rewards its scorers, opened in this process. What is found is written as `optimised.json`, which
`rollout.inference` and `rlvid.config.inference_files.load_inference` read, and as a table.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlvid.condition import Condition
from rlvid.config import Recipe
from rlvid.config.inference import InferenceConfig, SearchSpace
from rlvid.durable import make_folder, write_file
from rlvid.inference.measure import Bench, Job, Judges
from rlvid.inference.search import Bounds, Found, LeftOut, Point, pareto_front, search
from rlvid.launch.groups import recipe_sigmas, weighted_reward
from rlvid.launch.heldout import heldout_prompts
from rlvid.models.policy import Policy, open_policy
from rlvid.models.student import Student
from rlvid.models.tiny import video_text_folder
from rlvid.models.tiny.video_text_network import VideoTextNetwork
from rlvid.records import Prompt
from rlvid.rewards.scoring import ScoreItem, ScorerWorker, open_scorer_worker

if TYPE_CHECKING:
    from rlvid.models.base import VideoModel

ARTIFACT, TABLE = "optimised.json", "optimised.md"
COLUMNS = ("setting", "s/clip", "speed-up", "of pairs", "PSNR dB", "features", "reward", "")
"""Features: mean 1 - cosine; reward: change of the mean."""
OF_NO_STUDENT = (
    "a distilled student is sampled as it was trained: expected a setting that leaves its latents "
    "as they are, such as slim_decoder"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimiseSettings:
    """How a search is done."""

    num_prompts: int = 8
    num_seeds: int = 2
    """Clips of each prompt."""
    repeats: int = 5
    """Timed pairs of plain model and setting."""
    bounds: Bounds
    is_exhaustive: bool = False


def optimise_policy(
    recipe: Recipe,
    policy: Policy,
    space: SearchSpace,
    settings: OptimiseSettings,
    *,
    on_measured: Callable[[Point | LeftOut], None] = lambda _: None,
) -> Found:
    """Search the settings of a policy.

    Args:
        on_measured: called after each setting.

    Raises:
        ValueError: the policy, its prompts or its scorers cannot be opened here.
    """
    torch.set_num_threads(recipe.cluster.threads_per_role)
    judges = open_judges(recipe)
    model = open_policy(policy, recipe.model)
    prompts = heldout_prompts(recipe, settings.num_prompts)
    job = sampling_job(
        recipe, policy, model, prompts, num_seeds=settings.num_seeds, repeats=settings.repeats
    )
    bench = Bench(model, job, judges)

    def measure(config: InferenceConfig) -> Point | LeftOut:
        if job.generate is not None and not config.samples_exactly:
            result: Point | LeftOut = LeftOut(config=config, reason=OF_NO_STUDENT)
        else:
            result = bench.measure(config)
        on_measured(result)
        return result

    return search(space, measure, settings.bounds, is_exhaustive=settings.is_exhaustive)


def sampling_job(
    recipe: Recipe,
    policy: Policy,
    model: VideoModel,
    prompts: Sequence[Prompt],
    *,
    num_seeds: int = 1,
    repeats: int = 1,
) -> Job:
    """Return what samples clips as the recipe evaluates the policy; a student as itself.

    Args:
        model: the opened policy.
        num_seeds, repeats: as in `Job`.
    """
    size = recipe.model
    latent_shape = model.latent_shape(size.num_frames, size.height, size.width)
    sampling = policy.sampling
    student = None if sampling is None else Student(model, sampling, dtype=size.dtype)

    def generate(seeds: Sequence[int], condition: Condition) -> Tensor:
        assert student is not None
        return student.generate(seeds, latent_shape, condition)

    return Job(
        prompts=tuple(prompts),
        num_seeds=num_seeds,
        latent_shape=latent_shape,
        sigmas=recipe_sigmas(recipe, recipe.evaluate.num_denoising_steps),
        guidance_scale=recipe.evaluate.guidance_scale or recipe.rollout.guidance_scale,
        repeats=repeats,
        generate=None if student is None else generate,
    )


def open_judges(recipe: Recipe) -> Judges:
    """Open the shipped video-text network and the recipe's scorers in this process.

    Raises:
        ValueError: a scorer with weight asks a model server, which only a run starts.
    """
    scorers = [
        (config, open_scorer_worker(config, position))
        for position, config in enumerate(recipe.rewards.scorers)
        if config.weight
    ]
    for config, worker in scorers:
        if worker.info().uses_server:
            raise ValueError(
                f"optimise: scorer {config.label!r} asks a model server, which only a run starts: "
                "expected scorers that run in this process. Give it rewards.scorers without it"
            )
    network = VideoTextNetwork.load(video_text_folder())
    weights = {config.label: config.weight for config, _ in scorers}
    named = [(config.label, worker) for config, worker in scorers]

    def reward(clips: Tensor, prompts: Sequence[Prompt]) -> float:
        return _mean_reward(named, weights, clips, prompts, fps=recipe.model.fps)

    return Judges(features=network.embed_videos, reward=reward)


def _mean_reward(
    scorers: Sequence[tuple[str, ScorerWorker]],
    weights: dict[str, float],
    clips: Tensor,
    prompts: Sequence[Prompt],
    *,
    fps: float,
) -> float:
    """Return the mean of the weighted rewards; clips of one prompt are one group.

    Raises:
        ValueError: every clip lacks a score.
    """
    frames = (clips * 255.0).round().to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous().numpy()
    groups: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(prompt.prompt_id, []).append(row)
    rewards = []
    for rows in groups.values():
        items = [
            ScoreItem(item_id=(0, row), prompt=prompts[row], source=0, row=row) for row in rows
        ]
        scores: dict[int, dict[str, float]] = {row: {} for row in rows}
        for label, worker in scorers:
            for result in worker.score(items, [frames], fps=fps):
                if result.value is not None:
                    scores[result.item_id[1]][label] = result.value
        rewards += [weighted_reward(found, weights) for found in scores.values() if found]
    known = [value for value in rewards if value is not None]
    if not known:
        raise ValueError(
            "optimise: no scorer gave any clip a score: expected rewards to compare. Try them with "
            "rlvid evaluate"
        )
    return statistics.fmean(known)


def table_rows(found: Found) -> list[tuple[str, ...]]:
    """Return the cells of every point under `COLUMNS`, fastest first."""
    front = pareto_front(found.points)
    return [
        (
            point.config.describe(),
            f"{point.seconds:.4g}",
            f"{point.speedup:.2f}",
            f"{point.speedup_range[0]:.2f}-{point.speedup_range[1]:.2f}",
            f"{point.psnr_db:.1f}",
            f"{point.feature_distance:.4f}",
            f"{point.reward_change:+.4f}",
            "chosen" if point is found.chosen else "front" if point in front else "",
        )
        for point in sorted(found.points, key=lambda point: -point.speedup)
    ]


def write_found(
    folder: Path, found: Found, recipe: Recipe, policy: Policy, settings: OptimiseSettings
) -> Path:
    """Write the artifact and the table; return the artifact's path."""
    front = pareto_front(found.points)
    tree = {
        "inference": found.chosen.config.model_dump(mode="json"),
        "policy": policy.to_json(),
        "settings": asdict(settings),
        "clip": [recipe.model.num_frames, recipe.model.height, recipe.model.width],
        "num_denoising_steps": recipe.evaluate.num_denoising_steps,
        "chosen": _to_json(found.chosen),
        "front": [_to_json(point) for point in front],
        "points": [_to_json(point) for point in found.points],
        "left_out": [
            {"setting": one.config.describe(), "reason": one.reason} for one in found.left_out
        ],
        "environment": _environment(recipe),
    }
    make_folder(folder)
    write_file(folder / TABLE, [_markdown(found).encode()])
    write_file(folder / ARTIFACT, [(json.dumps(tree, indent=1) + "\n").encode()])
    return folder / ARTIFACT


def _to_json(point: Point) -> dict[str, Any]:
    tree = asdict(point)
    return {
        "setting": point.config.describe(),
        **tree,
        "config": point.config.model_dump(mode="json"),
    }


def _markdown(found: Found) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "| " + " | ".join("--" for _ in COLUMNS) + " |"]
    lines += [f"| {' | '.join(row)} |" for row in table_rows(found)]
    if found.left_out:
        lines += ["", "Left out:", ""]
        lines += [f"- {one.config.describe()}: {one.reason}" for one in found.left_out]
    return "\n".join(lines) + "\n"


def _environment(recipe: Recipe) -> dict[str, Any]:
    """Return what the seconds depend on; never a machine's name."""
    import diffusers

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "hardware": gpu or f"{os.cpu_count()}-core {platform.machine()} CPU, no GPU",
        "threads": recipe.cluster.threads_per_role,
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "dtype": recipe.model.dtype,
    }
