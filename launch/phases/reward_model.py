"""Trains a reward model on preference pairs, measures it on held-out ones, writes its folder.

One process and one rank: the driver's own, like the tiny VAE's. Pairs come from the ladder of
models and own degradations, or from a folder of records; no scorer takes part.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlvid.config import Recipe
from rlvid.config.reward_model import PairsConfig
from rlvid.launch.phases.base import Artifacts, PhaseContext
from rlvid.launch.phases.sft import next_stop
from rlvid.learners import checkpoint
from rlvid.observability.progress import PhaseProgress, open_progress
from rlvid.seeds import derive_seed

if TYPE_CHECKING:
    from rlvid.learners.reward_model import RewardModelLearner
    from rlvid.reward_models.network import RewardModel
    from rlvid.reward_models.pairs import PairSet


class RewardModelPhase:
    """Hands on the folder of the trained model as `artifact:<reward_model.name>`."""

    def run(self, context: PhaseContext, artifacts: Artifacts) -> Artifacts:
        from rlvid.learners.reward_model import RewardModelLearner

        recipe, config = context.recipe, context.recipe.reward_model
        checkpoints = context.folder / "checkpoints"
        latest = checkpoint.find_latest(checkpoints) if context.resume else None
        context.recorder.resume_after(latest.step if latest else None)
        with open_progress(
            "reward_model", config.num_steps, first_step=latest.step if latest else 0
        ) as progress:
            progress.say("making or reading pairs")
            train, heldout, old_train = open_pairs(context, artifacts)
            model, vocabulary = open_model(recipe, train, old_train)
            learner = RewardModelLearner(
                model,
                config,
                train,
                seed=derive_seed(recipe.seed, "reward_model"),
                old_pairs=old_train,
            )
            if latest:
                learner.load(latest.path)
            train_to_the_end(context, learner, progress, latest.step if latest else 0)
            folder = context.folder / config.name
            write_folder(context, model, vocabulary, _Splits(train=train, heldout=heldout), folder)
            for line in (folder.parent / "summary.txt").read_text().splitlines():
                progress.say(line)
        return replace(
            artifacts, reward_models={**artifacts.reward_models, config.name: str(folder)}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Splits:
    train: PairSet
    heldout: PairSet


def train_to_the_end(
    context: PhaseContext, learner: RewardModelLearner, progress: PhaseProgress, step: int
) -> None:
    """Take the remaining steps, with metrics for each and checkpoints when they are due."""
    config = context.recipe.reward_model
    checkpoints = context.folder / "checkpoints"
    while step < config.num_steps:
        last = next_stop(step, config.num_steps, config.checkpoint.every)
        reports = learner.train_steps(step, last)
        for report in reports:
            context.recorder.write(report.step + 1, report.metrics)
        progress.step_done(last - 1, reports[-1].metrics)
        step = last
        if step % config.checkpoint.every == 0 or step == config.num_steps:
            keep = config.checkpoint.keep
            with checkpoint.writing(checkpoints, step=step, keep=keep) as temporary:
                learner.save(temporary)


def open_pairs(
    context: PhaseContext, artifacts: Artifacts
) -> tuple[PairSet, PairSet, PairSet | None]:
    """Return training pairs, held-out pairs, and the training share of the old pairs."""
    config = context.recipe.reward_model
    train, heldout = _pairs(context, artifacts, config.pairs, "pairs").split(config.heldout_frac)
    if config.old_pairs is None:
        return train, heldout, None
    old, _ = _pairs(context, artifacts, config.old_pairs, "old_pairs").split(config.heldout_frac)
    return train, heldout, old


def _pairs(context: PhaseContext, artifacts: Artifacts, config: PairsConfig, name: str) -> PairSet:
    from rlvid.data.clips import clip_shape
    from rlvid.reward_models.ladder import Ladder
    from rlvid.reward_models.records import read_preferences
    from rlvid.reward_models.weak import build_weak_pairs

    recipe = context.recipe
    shape = clip_shape(recipe.model)
    if config.source != "weak":
        return read_preferences(Path(config.source).expanduser(), shape)
    folder = context.folder / name
    folder.mkdir(exist_ok=True)
    ladder = Ladder(
        rungs=config.weak.ladder,
        policy=artifacts.policy,
        model=recipe.model,
        shift=recipe.rollout.shift,
        guidance_scale=recipe.rollout.guidance_scale,
        folder=folder,
    )
    seed = derive_seed(recipe.seed, "reward_model", name)
    heldout_frac = recipe.reward_model.heldout_frac
    return build_weak_pairs(
        config.weak, shape, seed=seed, heldout_frac=heldout_frac, rung_clips=ladder
    )


def open_model(
    recipe: Recipe, train: PairSet, old: PairSet | None
) -> tuple[RewardModel, tuple[str, ...]]:
    """Return the model to train, new or from `start_from`, and its vocabulary.

    Raises:
        ValueError: `start_from` is another kind of model.
    """
    from rlvid.reward_models.folder import load_reward_model
    from rlvid.reward_models.network import build_reward_model
    from rlvid.reward_models.video_encoder import vocabulary_of

    config = recipe.reward_model
    if config.start_from:
        where = "reward_model.start_from"
        started = load_reward_model(Path(config.start_from), where=where, is_trained=True)
        for key in ("backbone", "head", "tie_k"):
            expected, got = getattr(config, key), getattr(started.config, key)
            if expected != got:
                raise ValueError(
                    f"{where}: {config.start_from!r} has {key} {got}, expected the recipe's "
                    f"{expected}; make them equal"
                )
        return started.model, started.vocabulary
    texts = [pair.prompt for pairs in (train, old) if pairs for pair in pairs.pairs]
    vocabulary = vocabulary_of(texts) if config.backbone.use == "video_encoder" else ()
    seed = derive_seed(recipe.seed, "reward_model", "initialise")
    return (
        build_reward_model(config, vocabulary=vocabulary, fps=recipe.model.fps, seed=seed),
        vocabulary,
    )


def write_folder(
    context: PhaseContext,
    model: RewardModel,
    vocabulary: tuple[str, ...],
    splits: _Splits,
    folder: Path,
) -> None:
    """Measure the model on the held-out pairs and write its folder, heldout.json and a summary."""
    import torch

    from rlvid.data.clips import clip_shape
    from rlvid.reward_models.folder import save_reward_model
    from rlvid.reward_models.measure import measure_pairs, to_json, z_scores

    recipe, config = context.recipe, context.recipe.reward_model
    device = torch.device(config.device)
    measures = measure_pairs(
        model,
        splits.heldout,
        tie_k=config.tie_k,
        seed=recipe.seed,
        num_bootstrap=config.num_bootstrap,
        device=device,
    )
    save_reward_model(
        folder,
        model,
        config,
        clip=clip_shape(recipe.model),
        vocabulary=vocabulary,
        z_scores=z_scores(model, splits.train, device=device),
        measured=to_json(measures),
    )
    (context.folder / "heldout.json").write_text(json.dumps(to_json(measures), indent=1) + "\n")
    lines = [
        f"{m.part}: held-out pair accuracy {m.accuracy:.3f} [{m.low:.3f}, {m.high:.3f}] on "
        f"{m.num_pairs} pairs, calibration error {m.calibration_error:.3f}"
        for m in measures
    ]
    (context.folder / "summary.txt").write_text("\n".join(lines) + "\n")
    metrics = {}
    for m in measures:
        metrics[f"reward_model/{m.part}/heldout_accuracy"] = m.accuracy
        metrics[f"reward_model/{m.part}/calibration_error"] = m.calibration_error
    # One past the last step, so that a resume from the last checkpoint forgets it.
    context.recorder.write(config.num_steps + 1, metrics)
