"""What `rlvid plan` refuses, warns of, and says of a cluster and a price."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from rlvid.launch import planner
from rlvid.launch.cli import app

RECIPE = "flash_wan2.1_1.3b"


def planned(*arguments: str, recipe: str = RECIPE) -> str:
    found = CliRunner().invoke(app, ["plan", recipe, *arguments], catch_exceptions=False)
    return " ".join(found.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quickstart_cpu", "model.use=nope"], "model.use: unknown name 'nope'"),
        (["quickstart_cpu", "model.num_frames=16"], "model.num_frames: expected a multiple of 4"),
        ([RECIPE, "model.num_frames=80"], "got 80. Take 77."),
    ],
)
def test_what_no_actor_could_load_is_refused(arguments: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)


def test_a_clip_outside_the_native_range_is_warned_of() -> None:
    text = planned("model.num_frames=97", "--cluster", "1x8xH200")
    assert "warning: model: 97 frames (at most 81) lie outside what wan was trained on" in text


def test_nothing_is_said_of_this_machine_for_a_cluster_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its RAM and disk are not those that the run will have."""
    monkeypatch.setattr(planner, "node_has_mib", lambda: 1.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    here = planned(recipe="quickstart_cpu")
    assert "warning: the run leaves" in here
    assert "of RAM, this machine has" in here
    there = planned("--cluster", "4X8XH100")
    assert "a step of grpo on 4 x 8 x NVIDIA H100" in there
    assert "warning" not in there


@pytest.mark.parametrize(
    ("recipe", "options", "said"),
    [
        (RECIPE, ["--price", "3"], r"--price: as the recipe is, [\d.]+ GPU-hours held cost [\d.]+"),
        ("quickstart_cpu", ["--price", "3"], "--price: the estimate has no GPU-hours"),
        (RECIPE, [], "which this recipe does not have$"),
    ],
)
def test_a_cluster_for_a_recipe_without_grpo(recipe: str, options: list[str], said: str) -> None:
    text = planned("phases=[evaluate]", "--cluster", "4x8xH100", *options, recipe=recipe)
    line = text[text.index("--cluster: its GPUs are split for phase grpo") :]
    assert re.search(said, line)
