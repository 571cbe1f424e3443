"""Which settings an engine reads, and which rollouts it can learn from."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from rlvid.config import AlgorithmConfig, Recipe

ODE = {"step_plan": {"kind": "ode"}, "initial_noise": "independent"}


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"name": "one", "phases": ("grpo",), **sections})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"use": "nft", "clip_range": 0.1}, "clip_range is not read by nft.* but by grpo"),
        ({"use": "awm", "kl": {"kind": "reference"}}, "kl is not read by awm"),
        (
            {"kl": {"kind": "reference", "anchor_coefficient": 1.0}},
            "anchor_coefficient is read by kind dual alone",
        ),
        ({"kl": {"coefficient": 0.1}}, "coefficient is not read by kind none"),
        (
            {"kl": {"kind": "reference", "anchor_every": 5}},
            "anchor_every is not read by kind reference, but by moving_anchor and dual",
        ),
        ({"kl": {"kind": "dual", "anchor_every": 1}}, "greater than or equal to 2"),
        ({"divergence_threshold": 0.1}, "not read by trust_region clip, but by divergence_mask"),
        ({"use": "awm", "awm": {"weight": "sigma", "power": 0.5}}, "power is not .* weight sigma"),
        (
            {"use": "awm", "awm": {"old_weight": 0.0, "old_policy": {"cap": 0.1}}},
            "old_policy is not read with old_weight 0, but above it: expected its default.",
        ),
        ({"data_loss": {"batch_size": 3}}, "batch_size is not read with coefficient 0"),
        (
            {"use": "refl", "refl": {"crosses_inputs": False}},
            "crosses_inputs is not read with num_gradient_steps 1.* default, True; got False",
        ),
        ({"use": "dpo", "importance_cap": 2.0}, "importance_cap is not read by dpo"),
        ({"use": "nft", "dpo": {"beta": 1.0}}, "dpo is not read by nft.* but by dpo"),
        ({"forward": {"num_noise_levels": 2}}, "forward is not read by grpo.* nft, awm, dpo"),
        ({"use": "awm", "forward": {"sigma_range": (0.5, 0.5)}}, "two ascending numbers"),
        ({"use": "dpo", "dpo": {"max_pairs": 0}}, "greater than or equal to 1"),
        ({"selective_kl": {"main": "a"}}, "there is no pull to select for: set kl.kind"),
        (
            {"use": "nft", "nft": {"reference_weight": 0.0}, "selective_kl": {"main": "a"}},
            "set nft.reference_weight",
        ),
        ({"use": "dpo", "selective_kl": {"main": "a"}}, "selective_kl is not read by dpo"),
        ({"use": "nft", "tree": {"fusion": "path"}}, "tree is not read by nft.* but by grpo"),
        ({"tree": {"extremes_frac": 0.2}}, "extremes_frac is read by width extremes alone"),
        ({"use": "refl", "advantage": {"best_of_n": 2}}, "advantage is not read by refl"),
        ({"use": "grpo", "refl": {"target": 2.0}}, "refl is not read by grpo.* but by refl"),
        ({"use": "refl", "refl": {"exit_frac": (1.0, 0.5)}}, "exit_frac must be two ascending"),
    ],
)
def test_setting_that_would_do_nothing_is_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        AlgorithmConfig.model_validate(settings)


def test_written_out_defaults_are_no_settings() -> None:
    """A resolved recipe names every key; it must load again."""
    for engine in ("grpo", "nft", "awm", "dpo", "refl"):
        tree = AlgorithmConfig(use=engine).model_dump()
        assert AlgorithmConfig.model_validate(tree).use == engine


TREE = {"step_plan": {"kind": "tree", "split_steps": (0, 2)}, "group_size": 8}
LATE = {"step_plan": {"kind": "tree", "split_steps": (0, 8)}, "group_size": 8}
EACH = {"step_plan": {"kind": "branch", "branch_at": "each", "range_frac": (0.0, 0.4)}}
PRUNED = {"tree": {"width": "best_child"}}
SELECTIVE = {"kl": {"kind": "reference"}, "selective_kl": {"main": "a"}}
SCORERS = ({"use": "constant", "name": "a"}, {"use": "constant", "name": "b"})


def between(name: str) -> dict[str, Any]:
    return {**TREE, "step_plan": {**TREE["step_plan"], "between": name}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"algorithm": {"tree": {"baseline": "siblings"}}}, "algorithm.tree: is of rollout"),
        (
            {"rollout": TREE, "algorithm": {"advantage": {"best_of_n": 2}}},
            "algorithm.advantage.best_of_n: a node",
        ),
        ({"algorithm": SELECTIVE, "rewards": {"scorers": SCORERS[:1]}}, "selective_kl.main"),
        (
            {
                "algorithm": SELECTIVE,
                "rewards": {"scorers": SCORERS, "aggregation": {"kind": "weighted_sum"}},
            },
            "expected rewards.aggregation.kind normalise_then_sum",
        ),
        (
            {"rollout": EACH, "algorithm": {"advantage": {"best_of_n": 2}}},
            "algorithm.advantage.best_of_n: rollouts are compared with those that part",
        ),
        ({"rollout": EACH, "algorithm": PRUNED}, "there are none.* got kind branch"),
        ({"rollout": between("ode"), "algorithm": PRUNED}, "there are none.* between ode"),
        ({"rollout": LATE, "algorithm": PRUNED}, r"there are none.* split_steps \[0, 8\] of 10"),
        ({"rollout": between("window"), "algorithm": PRUNED}, None),
        ({"rollout": EACH}, None),
        ({"rollout": TREE, "algorithm": {"tree": {"fusion": "path"}}}, None),
        ({"algorithm": SELECTIVE, "rewards": {"scorers": SCORERS}}, None),
    ],
)
def test_trees_and_selective_kl_fit_the_rest(
    sections: dict[str, Any], expected: str | None
) -> None:
    with nullcontext() if expected is None else pytest.raises(ValueError, match=expected):
        recipe(**sections)


FRACTION = {"kind": "fraction", "fraction": 0.3}


@pytest.mark.parametrize("engine", ["nft", "awm", "dpo", "refl"])
@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (
            {"learner": {"replay": "batched"}},
            r"learner\.replay is not read by algorithm.use {}, wh",
        ),
        (
            {"grpo": {"max_replay_drift_frac": 0.5}},
            r"grpo\.max_replay_drift_frac is not .*\.use {}",
        ),
        (
            {"rollout": {"step_plan": FRACTION}},
            r"rollout\.step_plan\.fraction is not read by algorithm\.use {}, which .*but by grpo",
        ),
        (
            {"rollout": {"inference": {"step_cache": {"kind": "taylorseer"}}}},
            r"rollout\.inference: must sample exactly where algorithm.use is {}, got 'TaylorSeer",
        ),
    ],
)
def test_settings_of_trained_steps_are_of_grpo(
    sections: dict[str, Any], expected: str, engine: str
) -> None:
    rollout = {"guidance_scale": 1.0, **sections.get("rollout", {})}
    with pytest.raises(ValueError, match=expected.format(engine)):
        recipe(algorithm={"use": engine}, **{**sections, "rollout": rollout})
    recipe(**sections)


def test_plug_in_may_read_any_setting() -> None:
    AlgorithmConfig.model_validate(
        {"use": "mine:Own", "clip_range": 0.1, "nft": {"beta": 0.1}, "forward": {}}
    )


def test_rollouts_must_be_what_the_engine_learns_from() -> None:
    with pytest.raises(ValueError, match=r"grpo trains stochastic denoising steps.*ode"):
        recipe(rollout=ODE)
    with pytest.raises(ValueError, match=r"nft samples and trains without guidance.*got 3"):
        recipe(algorithm={"use": "nft"}, rollout=ODE)
    with pytest.raises(ValueError, match="set initial_noise to independent, got shared"):
        recipe(algorithm={"use": "awm"}, rollout={"step_plan": {"kind": "ode"}})
    for engine in ("awm", "dpo"):
        recipe(algorithm={"use": engine}, rollout=ODE)
        recipe(algorithm={"use": engine})
    recipe(algorithm={"use": "nft"}, rollout={"guidance_scale": 1.0})
    recipe(algorithm={"use": "refl"})


@pytest.mark.parametrize(
    ("refl", "rollout", "expected"),
    [
        ({"start": "noise"}, {}, r"refl\.start: noise .* expected independent"),
        ({}, {"num_denoising_steps": 3}, None),
        ({"exit_frac": (0.8, 0.9)}, {"num_denoising_steps": 4}, "steps 3 up to 3 .excluded"),
        ({"num_gradient_steps": 3}, {"num_denoising_steps": 2}, "at most 2 num_gradient_steps"),
    ],
)
def test_refl_takes_steps_that_are_there(
    refl: dict[str, Any], rollout: dict[str, Any], expected: str | None
) -> None:
    with nullcontext() if expected is None else pytest.raises(ValueError, match=expected):
        recipe(algorithm={"use": "refl", "refl": refl}, rollout=rollout)


def test_the_reward_that_refl_follows_is_no_second_opinion() -> None:
    judged = {"judges": ({"use": "video_text"},)}
    own = {"use": "refl", "refl": {"reward": {"use": "video_text"}}}
    recipe(phases=("grpo", "evaluate"), evaluate=judged)
    with pytest.raises(ValueError, match="at least one scorer that did not train"):
        recipe(phases=("grpo", "evaluate"), evaluate=judged, algorithm=own)


def test_recipe_that_does_not_train_may_sample_as_it_likes() -> None:
    recipe(phases=("evaluate",), rollout=ODE)


@pytest.mark.parametrize(
    ("settings", "held"),
    [
        ({}, ()),
        ({"kl": {"kind": "moving_anchor"}}, ("anchor",)),
        ({"kl": {"kind": "dual"}}, ("reference", "anchor")),
        ({"use": "nft"}, ("old", "reference")),
        ({"use": "nft", "nft": {"reference_weight": 0.0}}, ("old",)),
        ({"use": "awm", "awm": {"old_weight": 0.0}}, ("reference",)),
        ({"use": "dpo"}, ("reference",)),
        ({"use": "refl"}, ()),
        ({"use": "refl", "refl": {"reference_weight": 0.1}}, ("reference",)),
    ],
)
def test_held_policies_are_those_of_the_algorithm(
    settings: dict[str, Any], held: tuple[str, ...]
) -> None:
    """What the planner counts is what the learner takes."""
    from rlvid.algorithms.base import ForwardAlgorithm
    from rlvid.algorithms.opening import open_algorithm

    config = AlgorithmConfig.model_validate(settings)
    assert config.held_policies == held
    algorithm = open_algorithm(config)
    if isinstance(algorithm, ForwardAlgorithm):
        others = algorithm.other_policies(config)
        assert others.reference == ("reference" in held)
        assert (others.old is not None) == ("old" in held)
        assert others.samples_with_old == (config.use == "nft")
