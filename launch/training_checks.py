"""What phases that train could not hand on at their end, looked for before any process starts."""

from __future__ import annotations

from itertools import pairwise

from rlvid.config import LearnerConfig, Recipe


def check_training(recipe: Recipe) -> None:
    """Refuse what a training phase could not hand on at its end.

    Raises:
        ValueError: names the recipe's path, the value and the way out.
    """
    learners = {
        "sft": recipe.sft.learner,
        "dpo": recipe.dpo.learner,
        "grpo": recipe.learner,
        "distillation": recipe.distillation.learner,
    }
    modes = [
        "full" if name == "sft" and recipe.sft.balance == "adapters" else learners[name].mode
        for name in recipe.phases
        if name in learners
    ]
    if ("lora", "lora") in pairwise(modes):
        raise ValueError(
            "learner.mode: a LoRA on top of a LoRA cannot be exported as one adapter; "
            "train the earlier phase with mode full"
        )
    if "evaluate" in recipe.phases and recipe.evaluate.use_ema:
        _check_use_ema(recipe.phases, learners)
    for phase, config in (("sft", recipe.sft), ("dpo", recipe.dpo)):
        if phase in recipe.phases and config.ema_is_policy and config.learner.ema is None:
            raise ValueError(
                f"{phase}.ema_is_policy: there are no averaged weights to hand on; "
                f"set {phase}.learner.ema, or leave ema_is_policy off"
            )
    if "dpo" in recipe.phases and not recipe.dpo.pairs:
        raise ValueError(
            "dpo.pairs: phase dpo needs pairs: expected artifact:<data_engine.name>, the folder of "
            "a data set, or a folder with a pairs.jsonl, got ''"
        )


def _check_use_ema(phases: tuple[str, ...], learners: dict[str, LearnerConfig]) -> None:
    """Refuse to judge averaged weights that no phase hands on to the evaluation.

    Nothing is known of those of a plug-in, or of the run whose policy is evaluated by itself.
    """
    before = phases[: phases.index("evaluate")]
    if phases == ("evaluate",) or any(":" in name for name in before):
        return
    trained = [name for name in before if name in learners]
    if not trained:
        raise ValueError(
            "evaluate.use_ema: no phase before evaluate trains the policy, so there are no "
            "averaged weights; leave use_ema off"
        )
    last = trained[-1]
    if last == "distillation":
        raise ValueError(
            "evaluate.use_ema: distillation hands on averaged weights, where it keeps some, as "
            "the policy itself; leave use_ema off"
        )
    if learners[last].ema is None:
        key = "learner.ema" if last == "grpo" else f"{last}.learner.ema"
        raise ValueError(
            f"evaluate.use_ema: the last training phase keeps no averaged weights; set {key}, or "
            "leave use_ema off"
        )
