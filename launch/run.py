"""Runs a recipe: phases in order, each once, then the report."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

from rlvid.config import Recipe
from rlvid.launch.artifact_names import with_artifacts
from rlvid.launch.cluster import open_cluster
from rlvid.launch.heartbeat import beating
from rlvid.launch.phases.base import (
    Artifacts,
    PhaseContext,
    load_artifacts,
    open_phase,
    save_artifacts,
)
from rlvid.launch.preemption import open_preemption
from rlvid.launch.preflight import check_model_folder, preflight
from rlvid.launch.run_folder import RunFolder, began_at, open_run_folder
from rlvid.launch.run_lock import held
from rlvid.models.policy import Policy
from rlvid.observability.recorder import Recorder

logger = logging.getLogger(__name__)


def run_recipe(recipe: Recipe, run_folder: Path, *, resume: bool = False) -> Path:
    """Run every phase that has not finished yet and return the path of the report.

    Raises:
        RunFolderError: the folder is in use, cannot be written, or holds another run.
        ClusterError: the roles ask for more than the cluster has.
        ValueError: user input that a phase refuses; the message names the recipe's path.
        Preempted: it was asked to make room and has drained; resume it.
    """
    phases = [open_phase(name, index) for index, name in enumerate(recipe.phases)]
    preflight(recipe)
    folder = open_run_folder(run_folder.resolve(), recipe, resume=resume)
    base = Policy(model_path=recipe.model.path)
    artifacts = Artifacts(base_policy=base, policy=base)
    with (
        beating(),
        held(folder.path),
        open_preemption(recipe.cluster.grace_s) as preemption,
        open_cluster(recipe),
    ):
        for index, (name, phase) in enumerate(zip(recipe.phases, phases, strict=True)):
            path = folder.phase(index, name)
            done = load_artifacts(path)
            if done is not None:
                logger.info("phase %s is finished, not run again", path.name)
                artifacts = done
                continue
            path.mkdir(parents=True, exist_ok=True)
            began = began_at(path)
            with Recorder(folder.path, path.name) as recorder:
                context = PhaseContext(
                    recipe=with_artifacts(
                        recipe, artifacts.reward_models, artifacts.datasets, artifacts.enhancer
                    ),
                    folder=path,
                    recorder=recorder,
                    resume=resume,
                    preemption=preemption,
                )
                made = phase.run(context, artifacts)
            artifacts = made.remembering(artifacts, name)
            artifacts = artifacts.with_timing(path.name, time.time() - began)
            save_artifacts(path, artifacts)
    return write_report(folder, recipe, artifacts)


def evaluate_run(recipe: Recipe, artifacts: Artifacts, run_folder: Path) -> Path:
    """Evaluate the policy of `artifacts` against its base and return the path of the report."""
    # Before the checks: no phase of this run makes what the recipe may name.
    recipe = with_artifacts(
        recipe.model_copy(update={"phases": ("evaluate",)}),
        artifacts.reward_models,
        artifacts.datasets,
        artifacts.enhancer,
    )
    phase = open_phase("evaluate", 0)
    preflight(recipe)
    for policy in (artifacts.base_policy, artifacts.policy):
        check_model_folder(recipe.model.model_copy(update={"path": policy.model_path}))
    folder = open_run_folder(run_folder.resolve(), recipe, resume=False)
    artifacts = replace(artifacts, evaluation=None, timings_s={})
    path = folder.phase(0, "evaluate")
    path.mkdir(parents=True)
    started = time.perf_counter()
    with open_cluster(recipe), Recorder(folder.path, path.name) as recorder:
        context = PhaseContext(
            recipe=recipe,
            folder=path,
            recorder=recorder,
            resume=False,
        )
        artifacts = phase.run(context, artifacts)
    artifacts = artifacts.with_timing(path.name, time.perf_counter() - started)
    save_artifacts(path, artifacts)
    return write_report(folder, recipe, artifacts)


def artifacts_of(run_folder: Path) -> Artifacts:
    """Return what the last finished phase of a run handed on.

    Raises:
        ValueError: no phase of the run has finished.
    """
    for path in sorted((run_folder.resolve() / "phases").glob("*"), reverse=True):
        artifacts = load_artifacts(path)
        if artifacts is not None:
            return artifacts
    raise ValueError(
        f"run folder {str(run_folder)!r}: no finished phase in it; "
        "finish the run with `rlvid run RECIPE --resume`, or name another folder"
    )


def write_report(folder: RunFolder, recipe: Recipe, artifacts: Artifacts) -> Path:
    """Write the self-contained HTML page of the run."""
    from rlvid.launch.report_data import report_data
    from rlvid.observability.report import build_report

    folder.report.write_text(build_report(report_data(folder, recipe, artifacts)))
    return folder.report
