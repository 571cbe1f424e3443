"""`rlvid plan RECIPE --simulate`: what a run would take, in virtual time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlvid.config import Recipe

DEFAULT_ACTORS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
DEFAULT_STALENESS = (0, 1, 2)
DEFAULT_STEPS = 50
WIDTH = 110
"""Columns of a terminal that the table needs; a narrower one folds its lines."""


def simulate_recipe(
    recipe: Recipe,
    *,
    actors: str | None,
    staleness: str | None,
    costs: Path | None,
    failures: Path | None,
    steps: int | None,
    as_json: bool,
) -> str:
    """Simulate the recipe's RL phase and return what to print.

    Raises:
        ValueError: an option is no list of numbers, or a file does not hold what it should.
    """
    import logging

    from rlvid.launch.simulate.costs import CostModel
    from rlvid.launch.simulate.failures import load_rates
    from rlvid.launch.simulate.of_recipe import plan_of, read_costs
    from rlvid.launch.simulate.sweep import render, sweep

    logging.getLogger("rlvid").setLevel(logging.ERROR)  # virtual actors die by the thousand
    plan = plan_of(recipe, read_costs(costs) if costs else CostModel())
    plan = replace(plan, num_steps=steps or min(plan.num_steps, DEFAULT_STEPS))
    if failures:
        plan = replace(plan, failures=load_rates(failures))
    found = sweep(
        plan,
        numbers("--actors", actors, DEFAULT_ACTORS, at_least=1),
        numbers("--staleness", staleness, DEFAULT_STALENESS, at_least=0),
    )
    if as_json:
        import json

        return json.dumps(found.to_json(), indent=1)
    from rich.console import Console

    console = Console(width=max(Console().width, WIDTH))
    with console.capture() as capture:
        console.print(render(found), highlight=False)
        if costs is None:
            console.print("costs are placeholders; give a file or a run's folder by --costs")
    return capture.get().rstrip()


def numbers(
    option: str, text: str | None, default: tuple[int, ...], *, at_least: int
) -> tuple[int, ...]:
    """Return the numbers of a list like "1,4,16".

    Raises:
        ValueError: it is none, or a number is too small.
    """
    if text is None:
        return default
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) >= at_least for part in parts):
        raise ValueError(
            f"{option}: expected whole numbers of at least {at_least} with commas between, "
            f"got {text!r}, e.g. {option} 1,4,16"
        )
    return tuple(int(part) for part in parts)
