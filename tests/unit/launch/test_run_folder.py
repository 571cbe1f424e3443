"""A run folder is never overwritten, and a resume fits the run it continues."""

import json
import os
import time
from pathlib import Path

import pytest

from rlvid.config import Recipe
from rlvid.launch import run_folder
from rlvid.launch.demand import ClusterError, check_demand
from rlvid.launch.run_folder import RunFolderError, began_at, open_run_folder


def test_used_folder_is_not_overwritten(tmp_path: Path) -> None:
    """A second run with the same name must not destroy the first one's results."""
    recipe = Recipe(name="a")
    open_run_folder(tmp_path / "run", recipe, resume=False)
    with pytest.raises(RunFolderError, match="already in use; add --resume"):
        open_run_folder(tmp_path / "run", recipe, resume=False)


def test_resume_with_another_recipe_names_the_difference(tmp_path: Path) -> None:
    """Half a run under other settings would be reported under the wrong recipe."""
    open_run_folder(tmp_path / "run", Recipe(name="a", seed=1), resume=False)
    with pytest.raises(RunFolderError, match="seed: 1; seed: 2"):
        open_run_folder(tmp_path / "run", Recipe(name="a", seed=2), resume=True)


def test_a_resume_may_run_elsewhere_and_on_more(tmp_path: Path) -> None:
    """A job that is queued again gets other nodes, so another address, and perhaps more of them."""
    first = {"name": "a", "cluster": {"address": "10.0.0.1:20001"}, "rollout": {"num_actors": 2}}
    later = {"name": "a", "cluster": {"grace_s": 30.0}, "rollout": {"num_actors": 4}}
    open_run_folder(tmp_path / "run", Recipe.model_validate(first), resume=False)
    open_run_folder(tmp_path / "run", Recipe.model_validate(later), resume=True)
    later["rollout"] = {"num_actors": 4, "group_size": 6}
    with pytest.raises(RunFolderError, match=r"differ: group_size: \d+; group_size: \d+\. "):
        open_run_folder(tmp_path / "run", Recipe.model_validate(later), resume=True)


def test_resume_of_nothing_says_so(tmp_path: Path) -> None:
    """A mistyped folder must not start a run from scratch."""
    with pytest.raises(RunFolderError, match="nothing to resume"):
        open_run_folder(tmp_path / "run", Recipe(name="a"), resume=True)


def test_recipe_and_versions_are_written_first(tmp_path: Path) -> None:
    """What a run was must be known even if it dies in its first second."""
    folder = open_run_folder(tmp_path / "run", Recipe(name="a"), resume=False)
    assert "name: a" in folder.recipe.read_text()
    assert '"torch"' in (folder.path / "versions.json").read_text()


def test_commit_of_a_run_is_that_of_its_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel is unpacked anywhere, in the checkout of something else for one."""
    (tmp_path / "built_from.txt").write_text("0123456789ab-dirty\n")
    monkeypatch.setattr(run_folder, "BUILT_FROM", tmp_path / "built_from.txt")
    folder = open_run_folder(tmp_path / "run", Recipe(name="a"), resume=False)
    versions = json.loads((folder.path / "versions.json").read_text())
    assert versions["commit"] == "0123456789ab-dirty"


def test_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    """The parent is a file, which no user, root included, can write into."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot be written .*--run-folder") as caught:
        open_run_folder(tmp_path / "file" / "run", Recipe(name="a"), resume=False)
    assert "\n" not in str(caught.value)
    assert os.fspath(tmp_path / "file" / "run") in str(caught.value)


def test_more_gpus_than_there_are_is_refused() -> None:
    """Ray would wait for ever for GPUs that no node has."""
    recipe = Recipe.model_validate({"name": "a", "learner": {"num_gpus": 2}})
    with pytest.raises(ClusterError, match=r"ask for 2 GPUs together, the cluster has 0"):
        check_demand(recipe, {"CPU": 64.0})


def test_cpus_of_a_cluster_that_is_joined_are_not_the_recipes_to_raise() -> None:
    for address, is_said in ((None, True), ("10.0.0.1:20001", False)):
        recipe = Recipe.model_validate({"name": "a", "cluster": {"address": address}})
        with pytest.raises(ClusterError, match="the cluster has 1") as caught:
            check_demand(recipe, {"CPU": 1.0})
        assert ("cluster.num_cpus" in str(caught.value)) is is_said


def test_a_phase_began_when_it_was_first_started(tmp_path: Path) -> None:
    """What its last driver took would leave out those that were killed or made room."""
    first = began_at(tmp_path)
    assert 0.0 <= time.time() - first < 60.0
    time.sleep(0.02)
    assert began_at(tmp_path) == first
