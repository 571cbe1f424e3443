"""What a phase is, what it is given, and the artifacts it hands to the next one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rlvid.config import Recipe
from rlvid.launch.preemption import Preemption
from rlvid.models.policy import Policy
from rlvid.observability.recorder import Recorder
from rlvid.plugins import resolve

PHASES = {
    "tiny_base": "rlvid.launch.phases.tiny_base:TinyBase",
    "data_engine": "rlvid.launch.phases.data_engine:DataEngine",
    "sft": "rlvid.launch.phases.sft:Sft",
    "dpo": "rlvid.launch.phases.dpo:OfflineDpo",
    "reward_model": "rlvid.launch.phases.reward_model:RewardModelPhase",
    "grpo": "rlvid.launch.phases.grpo:Grpo",
    "prompt_enhancement": "rlvid.launch.phases.prompt_enhancement:PromptEnhancement",
    "distillation": "rlvid.launch.phases.distillation:Distillation",
    "evaluate": "rlvid.launch.phases.evaluate:Evaluate",
}
"""Short names of the built-in phases; a recipe may name `package.module:Class` instead."""
IN_RUN = "<run>/"
"""Stands for the run folder in artifacts.json, so that a run may be moved or copied."""


BASE = "base"
"""Name of what the run started from, where stages are named; no stage has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStage:
    """What the run could do once a phase, or a stage of distillation, had ended."""

    name: str
    """Of the phase; unique in the run, and fit for a file's name."""
    policy: Policy
    enhancer: str | None = None
    """Folder of what rewrites this policy's prompts; None shows it the user's words."""
    teacher: str | None = None
    """Name of the stage that this student was distilled from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifacts:
    """Typed files of the run folder that flow from phase to phase."""

    base_policy: Policy
    """What the run started from; evaluation compares against it."""
    policy: Policy
    """The newest policy."""
    ema_policy: Policy | None = None
    """Its averaged weights, where the learner kept them."""
    evaluation: str | None = None
    """JSON file of the last paired evaluation."""
    reward_models: Mapping[str, str] = field(default_factory=dict)
    """Name to folder of the reward models trained so far; recipes say `artifact:<name>`."""
    datasets: Mapping[str, str] = field(default_factory=dict)
    """Name to folder of the data sets made so far; `sft.clips` says `artifact:<name>`."""
    enhancer: str | None = None
    """Folder of the prompt enhancer, where one was trained; `evaluate.enhance` says "artifact"."""
    timings_s: Mapping[str, float] = field(default_factory=dict)
    """Wall seconds by phase."""
    stages: tuple[RunStage, ...] = ()
    """What there was to deploy over time, oldest first; `evaluate.stages` compares them."""

    @property
    def newest_stage(self) -> str:
        """Name of the last stage."""
        return self.stages[-1].name if self.stages else BASE

    def with_stage(self, name: str, policy: Policy, *, teacher: str | None = None) -> Artifacts:
        """Return the artifacts with another newest policy, which is remembered under `name`."""
        names = [BASE, *(stage.name for stage in self.stages)]
        unique, number = name, 1
        while unique in names:
            number += 1
            unique = f"{name}_{number}"
        stage = RunStage(name=unique, policy=policy, enhancer=self.enhancer, teacher=teacher)
        return replace(self, policy=policy, stages=(*self.stages, stage))

    def remembering(self, before: Artifacts, phase: str) -> Artifacts:
        """Return the artifacts that a phase made of `before`, with a stage for what it left.

        A phase that has noted stages itself, as distillation does, is left alone; one that made the
        run's base, or no policy and no enhancer, leaves none.

        Args:
            phase: as the recipe names it.
        """
        is_new = self.policy not in (before.policy, self.base_policy)
        if self.stages != before.stages or not (is_new or self.enhancer != before.enhancer):
            return self
        return self.with_stage(phase.rpartition(":")[2], self.policy)

    def with_timing(self, name: str, seconds: float) -> Artifacts:
        return replace(self, timings_s={**self.timings_s, name: seconds})


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseContext:
    """What a phase may use."""

    recipe: Recipe
    folder: Path
    """The phase's own folder; it exists."""
    recorder: Recorder
    resume: bool
    """True when an earlier attempt at this phase may have left checkpoints in `folder`."""
    preemption: Preemption | None = None
    """Asked at every turn by a loop that can drain; None where nobody listens."""


@runtime_checkable
class Phase(Protocol):
    """One stage of a recipe."""

    def run(self, context: PhaseContext, artifacts: Artifacts) -> Artifacts: ...


def open_phase(name: str, index: int) -> Phase:
    """Return the phase a recipe names.

    Raises:
        ValueError: the name is unknown or what it names has no `run`.
    """
    where = f"phases[{index}]"
    kind = resolve(name, PHASES, where=where)
    phase = kind() if isinstance(kind, type) else kind
    if not isinstance(phase, Phase):
        raise ValueError(
            f"{where}: {name!r} is not a phase; expected a class with "
            "run(context, artifacts) -> artifacts"
        )
    return phase


def save_artifacts(folder: Path, artifacts: Artifacts) -> None:
    """Mark the phase as finished; the rename makes it all or nothing."""
    run = folder.resolve().parent.parent
    ema = artifacts.ema_policy
    tree = {
        "base_policy": _stored(artifacts.base_policy.to_json(), run),
        "policy": _stored(artifacts.policy.to_json(), run),
        "ema_policy": _stored(ema.to_json(), run) if ema else None,
        **_stored({"evaluation": artifacts.evaluation}, run),
        "reward_models": _stored(artifacts.reward_models, run),
        "datasets": _stored(artifacts.datasets, run),
        **_stored({"enhancer": artifacts.enhancer}, run),
        "timings_s": dict(artifacts.timings_s),
        "stages": [_stage_json(stage, run) for stage in artifacts.stages],
    }
    temporary = folder / "artifacts.json.part"
    temporary.write_text(json.dumps(tree, indent=1) + "\n")
    os.replace(temporary, folder / "artifacts.json")


def load_artifacts(folder: Path) -> Artifacts | None:
    """Return what the finished phase left, or None when it has not finished."""
    path = folder / "artifacts.json"
    if not path.is_file():
        return None
    tree: dict[str, Any] = json.loads(path.read_text())
    run, ema = folder.resolve().parent.parent, tree["ema_policy"]
    return Artifacts(
        base_policy=Policy.from_json(_found(tree["base_policy"], run)),
        policy=Policy.from_json(_found(tree["policy"], run)),
        ema_policy=Policy.from_json(_found(ema, run)) if ema else None,
        evaluation=_found({"evaluation": tree["evaluation"]}, run)["evaluation"],
        # Runs of before there were any have no such key.
        reward_models=_folders(tree.get("reward_models", {}), run),
        datasets=_folders(tree.get("datasets", {}), run),
        enhancer=_found({"enhancer": tree.get("enhancer")}, run)["enhancer"],
        timings_s=tree["timings_s"],
        stages=tuple(_stage(stage, run) for stage in tree.get("stages", ())),
    )


def _stage_json(stage: RunStage, run: Path) -> dict[str, Any]:
    return {
        "name": stage.name,
        "policy": _stored(stage.policy.to_json(), run),
        **_stored({"enhancer": stage.enhancer}, run),
        "teacher": stage.teacher,
    }


def _stage(tree: dict[str, Any], run: Path) -> RunStage:
    return RunStage(
        name=tree["name"],
        policy=Policy.from_json(_found(tree["policy"], run)),
        enhancer=_found({"enhancer": tree["enhancer"]}, run)["enhancer"],
        teacher=tree["teacher"],
    )


def _stored(paths: Mapping[str, str | None], run: Path) -> dict[str, str | None]:
    """Return the paths with the run folder cut off those that lie in it."""
    return {
        name: IN_RUN + Path(path).relative_to(run).as_posix()
        if path and Path(path).is_relative_to(run)
        else path
        for name, path in paths.items()
    }


def _found(paths: Mapping[str, str | None], run: Path) -> dict[str, str | None]:
    """Return what `_stored` made of paths, for the run folder where it lies now."""
    return {
        name: str(run / path.removeprefix(IN_RUN)) if path and path.startswith(IN_RUN) else path
        for name, path in paths.items()
    }


def _folders(paths: Mapping[str, str | None], run: Path) -> dict[str, str]:
    return {name: path for name, path in _found(paths, run).items() if path}


def trained_policy(base: Policy, exported: Path, mode: str) -> tuple[Policy, Policy | None]:
    """Return the policy a learner exported to `exported`, and its average where one was kept.

    Raises:
        ValueError: a LoRA trained on top of a LoRA, which one adapter file cannot hold.
    """
    if mode == "lora" and base.lora_path is not None:
        raise ValueError(
            "learner.mode: a LoRA on top of a LoRA cannot be exported as one adapter; "
            "train the earlier phase with mode full"
        )

    def of(folder: Path) -> Policy:
        if mode == "lora":
            return Policy(model_path=base.model_path, lora_path=str(folder))
        return Policy(model_path=str(folder))

    ema = exported.with_name(f"{exported.name}_ema")
    return of(exported), of(ema) if ema.is_dir() else None
