"""What the loader accepts, and each message it has for what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvid.config.errors import ConfigError
from rlvid.config.loader import dump_recipe, load_recipe


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a_run\n")
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_unknown_key_names_the_near_one(recipe_file: Path) -> None:
    """A typo must not become a default."""
    assert message(recipe_file, "rollout.group_sise=4") == (
        "rollout.group_sise: unknown key; did you mean 'group_size'?"
    )


def test_unknown_key_far_from_all_lists_the_known_ones(recipe_file: Path) -> None:
    """Without a near name the reader still needs a way out."""
    text = message(recipe_file, "cluster.zzz=4")
    assert text.startswith("cluster.zzz: unknown key; known keys: address, ")


def test_unknown_key_in_a_list_of_sections_is_found(recipe_file: Path) -> None:
    """Scorers are sections too, one level inside a list."""
    assert message(recipe_file, "rewards.scorers.0.wieght=2") == (
        "rewards.scorers.0.wieght: unknown key; did you mean 'weight'?"
    )


def test_exponent_without_point_is_explained(recipe_file: Path) -> None:
    """YAML 1.1 reads 1e-3 as text, which nobody expects."""
    assert message(recipe_file, "rollout.eta=1e-3") == (
        "rollout.eta: expected float, got '1e-3' (YAML reads 1e-3 as text; write 1.0e-3)"
    )


def test_quoted_number_is_not_a_number(recipe_file: Path) -> None:
    """Strict types: what is quoted is text."""
    assert message(recipe_file, "rollout.eta='0.5'") == (
        "rollout.eta: expected float, got '0.5' (remove the quotes)"
    )


def test_fraction_is_not_an_int(recipe_file: Path) -> None:
    """4.0 rollouts is a mistake somewhere else."""
    assert message(recipe_file, "rollout.group_size=4.0") == (
        "rollout.group_size: expected int, got 4.0"
    )


def test_wrong_choice_lists_the_choices(recipe_file: Path) -> None:
    assert message(recipe_file, "rollout.initial_noise=shard") == (
        "rollout.initial_noise: expected one of 'shared', 'independent', got 'shard'"
    )


def test_bare_no_for_text_is_explained(recipe_file: Path) -> None:
    """YAML 1.1 reads no as false."""
    assert message(recipe_file, "model.path=no") == (
        "model.path: expected text, got False "
        "(YAML reads yes, no, on and off as true and false; put it in quotes)"
    )


def test_number_out_of_range_names_the_bound(recipe_file: Path) -> None:
    assert message(recipe_file, "rollout.eta=-1") == (
        "rollout.eta: expected a number of at least 0.0, got -1"
    )


def test_infinite_number_is_refused(recipe_file: Path) -> None:
    assert message(recipe_file, "rollout.eta=.inf").startswith("rollout.eta: ")


def test_section_rule_reads_as_written(recipe_file: Path) -> None:
    """What one section can know is said with the section's path."""
    assert message(recipe_file, "rollout.group_size=1") == (
        "rollout: group_size must be at least 2 (the advantage is group-relative), got 1"
    )


def test_rule_between_sections_is_checked(recipe_file: Path) -> None:
    text = message(recipe_file, "algorithm.advantage.best_of_n=99")
    assert text == (
        "recipe: algorithm.advantage.best_of_n must be at most rollout.group_size 8, got 99"
    )


def test_every_error_has_a_line(recipe_file: Path) -> None:
    """Two typos are reported in one go."""
    lines = message(recipe_file, "rollout.etaa=1", "model.fsp=2").splitlines()
    assert len(lines) == 2


def test_missing_name_is_said(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("seed: 1\n")
    assert message(path) == "name: missing; every recipe must set it"


def test_key_given_twice_is_an_error(tmp_path: Path) -> None:
    """The last of two values would win without a word."""
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nrollout:\n  eta: 1.0\n  eta: 0.5\n")
    assert "key 'eta' appears twice, the second time on line 4" in message(path)


def test_python_object_in_yaml_is_refused(tmp_path: Path) -> None:
    """A recipe is shared between people; it must not be able to run code."""
    path = tmp_path / "unsafe.yaml"
    path.write_text("name: !!python/object/apply:os.getcwd []\n")
    assert "not valid YAML" in message(path)


def test_date_is_explained(recipe_file: Path) -> None:
    assert "put it in quotes" in message(recipe_file, "name=2026-01-31")


def test_unknown_recipe_says_which_exist() -> None:
    with pytest.raises(ConfigError, match="recipe 'no_such_recipe_here': no such file or recipe"):
        load_recipe("no_such_recipe_here")


def test_list_index_out_of_range_says_how_long_the_list_is(recipe_file: Path) -> None:
    assert message(recipe_file, "rewards.scorers.7.weight=2") == (
        "rewards.scorers.7: expected an index from 0 to 2 (the list has 3 items), got '7'"
    )


def test_override_without_value_is_an_error(recipe_file: Path) -> None:
    assert message(recipe_file, "rollout.eta") == (
        "override 'rollout.eta': expected path=value, as in rollout.group_size=4"
    )


def test_override_below_a_number_is_an_error(recipe_file: Path) -> None:
    assert message(recipe_file, "rollout.eta.x=1") == (
        "rollout.eta.x: rollout.eta is 1.0 and has no keys to set"
    )


def test_overrides_reach_list_items_of_the_defaults(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["rewards.scorers.0.weight=2", "rollout.group_size=4"])
    assert recipe.rewards.scorers[0].weight == 2.0
    assert recipe.rollout.group_size == 4


def test_override_opens_a_section_that_is_off(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["learner.ema.decay=0.5"])
    assert recipe.learner.ema is not None
    assert recipe.learner.ema.decay == 0.5


def test_partial_section_keeps_the_defaults_of_its_place(tmp_path: Path) -> None:
    """`sft.learner` trains in full by default; setting its ranks must not turn on LoRA."""
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\nsft:\n  learner:\n    num_ranks: 2\n")
    learner = load_recipe(path).sft.learner
    assert (learner.num_ranks, learner.mode) == (2, "full")
    assert learner.optimizer.learning_rate == 1e-3


def test_empty_section_is_the_default_section(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\nrollout:\n")
    assert load_recipe(path).rollout.group_size == 8


def test_int_for_float_and_list_for_tuple_are_fine(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["rollout.eta=1", "rollout.step_plan.range_frac=[0, 1]"])
    assert recipe.rollout.eta == 1.0
    assert recipe.rollout.step_plan.range_frac == (0.0, 1.0)


def test_dumped_recipe_loads_to_an_equal_one(recipe_file: Path, tmp_path: Path) -> None:
    """The run folder's recipe must reproduce the run, small numbers included."""
    recipe = load_recipe(recipe_file, ["learner.optimizer.eps=1.0e-12", "learner.ema.every=3"])
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe
