"""Recipes for GPUs: none can run here; each is read, planned, and its header is the planner's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from rlvid.config import Recipe
from rlvid.config.loader import find_recipe, load_recipe
from rlvid.flow.sigmas import shifted_sigmas
from rlvid.launch.demand import demanded
from rlvid.launch.estimate.assumptions import Assumptions, read_assumptions
from rlvid.launch.estimate.phases import PhaseEstimate, estimate, misfits
from rlvid.launch.estimate.render import figure, phase_lines
from rlvid.launch.planner import Plan, plan
from rlvid.models.published import PUBLISHED
from rlvid.plugins import resolve
from rlvid.rewards.critics import BUILTIN
from tests.bench.recipe_marks import PLANNED, SMOKE_TESTED, mark_of, marked_header, marked_row
from tests.bench.tiny_recipes import tiny_recipe

GPUS = {
    "flash_wan2.1_1.3b_1gpu": 1,
    "flash_wan2.1_1.3b": 8,
    "longcat_rewards_wan2.1_1.3b": 8,
    "post_train_wan2.1_1.3b": 8,
    "gigavideo_wan2.1_1.3b": 8,
    "wan2.1_14b_lora": 64,
    "wan2.2_a14b": 64,
}
FOLDER = find_recipe("quickstart_cpu").parent
BOUNDARY = 0.875


@pytest.fixture(autouse=True)
def _no_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have a home without models: the planner knows their sizes by their folder's name."""
    monkeypatch.setenv("HOME", str(tmp_path))


def test_every_recipe_for_gpus_is_in_the_table() -> None:
    recipes = {path.stem: load_recipe(path.stem) for path in FOLDER.glob("*.yaml")}
    assert {name for name, recipe in recipes.items() if demanded(recipe)["GPU"]} == set(GPUS)


@pytest.mark.parametrize("name", GPUS)
def test_it_fits_by_the_planner(name: str) -> None:
    recipe = load_recipe(name)
    assert GPUS[name] - 0.1 <= demanded(recipe)["GPU"] <= GPUS[name]
    assert misfits(plan(recipe), assumptions(name)) == []


@pytest.mark.parametrize("name", GPUS)
def test_figures_of_the_header_are_the_planners(name: str) -> None:
    """Paste the lines of the message when settings or formulas change."""
    recipe = load_recipe(name)
    planned = plan(recipe)
    estimates = estimate(recipe, planned, assumptions(name))
    blocks = [phase_lines(estimates)]
    if not name.startswith("gigavideo"):  # its header has the phases alone
        blocks.insert(0, role_lines(planned, estimates))
    text = find_recipe(name).read_text(encoding="utf-8")
    for block in blocks:
        expected = "\n".join(f"#   {line}" for line in block)
        assert f"\n{expected}\n" in text, f"{name}: the planner gives\n{expected}"


@pytest.mark.parametrize("name", GPUS)
def test_row_of_the_readme_is_the_planners(name: str) -> None:
    """Paste the row of the message when settings or formulas change."""
    recipe = load_recipe(name)
    row = readme_row(recipe, estimate(recipe, plan(recipe), assumptions(name)))
    assert row in (FOLDER / "README.md").read_text(encoding="utf-8"), f"expected\n{row}"


@pytest.mark.parametrize("name", GPUS)
def test_mark_of_the_header_is_what_was_run(name: str) -> None:
    """`python -m tests.bench.recipe_marks` writes header and row once the results change."""
    assert f"\n# Mark: {mark_of(name)}.\n" in find_recipe(name).read_text(encoding="utf-8")


def test_a_recipe_is_marked_by_its_row_of_the_results(tmp_path: Path) -> None:
    results = tmp_path / "cpu_tiny_recipes.json"
    assert mark_of("flash_wan2.1_1.3b", results) == PLANNED
    results.write_text('{"recipes": [{"recipe": "flash_wan2.1_1.3b"}]}')
    assert mark_of("flash_wan2.1_1.3b", results) == SMOKE_TESTED
    assert mark_of("flash_wan2.1_1.3b_1gpu", results) == PLANNED


def test_marks_can_be_written_and_taken_back() -> None:
    for text, write in (
        (find_recipe("wan2.2_a14b").read_text(encoding="utf-8"), marked_header),
        (
            (FOLDER / "README.md").read_text(encoding="utf-8"),
            lambda text, mark: marked_row(text, "wan2.2_a14b", mark),
        ),
    ):
        changed = write(write(text, PLANNED), SMOKE_TESTED)
        assert f"{SMOKE_TESTED}" in changed
        assert write(changed, mark_of("wan2.2_a14b")) == text


@pytest.mark.parametrize("name", GPUS)
def test_its_settings_hold_on_the_tiny_model_without_a_gpu(name: str, tmp_path: Path) -> None:
    """What `tests.bench.tiny_recipes` runs whole."""
    recipe = tiny_recipe(load_recipe(name), tmp_path)
    assert recipe.phases == load_recipe(name).phases
    assert demanded(recipe)["GPU"] == 0


@pytest.mark.parametrize("name", GPUS)
def test_scorers_know_their_settings(name: str) -> None:
    recipe = load_recipe(name)
    for scorer in (*recipe.rewards.scorers, *recipe.evaluate.judges):
        if scorer.config:
            scorer_class: Any = resolve(scorer.use, BUILTIN, where="use")
            scorer_class.Config(**scorer.config)


def test_the_14b_shares_out_its_heads_and_tokens() -> None:
    recipe = load_recipe("wan2.1_14b_lora")
    ranks = recipe.learner.sequence_parallel
    assert ranks > 1
    assert plan(recipe).size.tokens % ranks == 0
    heads = PUBLISHED["Wan2.1-T2V-14B-Diffusers"].transformer["num_attention_heads"]
    assert heads % ranks == 0
    assert recipe.rollout.groups_per_step % recipe.learner.data_parallel == 0


def test_both_experts_of_the_a14b_have_steps_to_train() -> None:
    rollout = load_recipe("wan2.2_a14b").rollout
    assert rollout.shift is not None
    levels = shifted_sigmas(rollout.num_denoising_steps, rollout.shift)
    first, end = (int(f * rollout.num_denoising_steps) for f in rollout.step_plan.range_frac)
    high = [float(level) >= BOUNDARY for level in levels[first:end]]
    assert (sum(high), len(high) - sum(high)) == (7, 5)


def assumptions(name: str) -> Assumptions:
    """Return those of the command in the recipe's header, `$ rlvid plan NAME --assume ...`."""
    text = find_recipe(name).read_text(encoding="utf-8")
    command = re.search(r"^#   \$ (rlvid plan .*)$", text, re.MULTILINE)
    if command is None:
        return Assumptions()
    program, verb, recipe, *rest = shlex.split(command.group(1))
    assert (program, verb, recipe) == ("rlvid", "plan", name)
    assert set(rest[::2]) <= {"--assume"}
    return read_assumptions(rest[1::2])


def role_lines(planned: Plan, estimates: tuple[PhaseEstimate, ...]) -> list[str]:
    """Return who is on a GPU, and what a step of the RL phase takes."""
    lines = [f"{'role':<24}  processes  GPUs each  GiB each"]
    lines += [
        f"{role.role:<24}  {role.num_processes:>9}  {role.num_gpus:>9g}  "
        f"{role.total_mib / 1024:>8.1f}"
        for role in planned.roles
        if role.num_gpus and role.total_mib
    ]
    hours = next(phase.hours for phase in estimates if phase.phase == "grpo")
    step = (
        f"a step of grpo: {planned.rollouts_per_step} videos, {planned.sampling_forwards:,.0f} "
        f"forwards, {planned.learning_forwards:.0f} trained rows, "
        f"{figure(hours * 3600 / planned.num_steps)} s"
    )
    return [*lines, step]


def readme_row(recipe: Recipe, estimates: tuple[PhaseEstimate, ...]) -> str:
    """Return the recipe's row of the table of recipes for GPUs."""
    hours = sum(phase.hours for phase in estimates)
    held = sum(phase.held_gpu_hours for phase in estimates)
    peak = max(phase.peak_mib for phase in estimates) / 1024
    return (
        f"| `{recipe.name}` | {GPUS[recipe.name]} | {', '.join(recipe.phases)} | "
        f"{figure(hours)} h, {figure(held)} GPU-h, {figure(peak)} GiB | {mark_of(recipe.name)} |"
    )
