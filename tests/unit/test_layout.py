"""The layout of the repository: folders at the top, links inside rlvid/, one name per module."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rlvid.config.loader import load_recipe

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("actors", "learners", "rewards", "launch", "configs")
ALLOWED = {
    "README.md", "LICENSE", "CHANGELOG.md", "setup.py", "pyproject.toml", "rlvid", "tests", *ROLES,
}  # fmt: skip
"""What may lie at the top, beside hidden files and what git ignores."""
RECIPES = sorted((ROOT / "configs").glob("**/*.yaml"))


def in_fresh_python(code: str) -> str:
    """Run code in an interpreter that has imported nothing, from the top of the repository."""
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


@pytest.mark.parametrize("role", ROLES)
def test_role_is_linked_into_the_package(role: str) -> None:
    """Relative, so that a clone works anywhere."""
    link = ROOT / "rlvid" / role
    assert link.is_symlink()
    assert os.readlink(link) == f"../{role}"


def test_roles_import_under_one_name() -> None:
    """A second copy of a module makes a second copy of each class, and isinstance fails."""
    leaked = in_fresh_python(
        "import sys, importlib\n"
        f"for role in {ROLES}: importlib.import_module('rlvid.' + role)\n"
        "import rlvid.launch.run, rlvid.actors.pool, rlvid.rewards.pool, rlvid.learners.rl\n"
        f"print(sorted(set({ROLES}) & {{name.split('.')[0] for name in sys.modules}}))"
    )
    assert leaked == "[]"


def test_recipe_needs_no_torch() -> None:
    """Checking a recipe takes a moment, on a login node too."""
    heavy = in_fresh_python(
        "import sys, rlvid.config, rlvid.config.loader\n"
        "print([m for m in ('torch', 'numpy', 'ray', 'diffusers') if m in sys.modules])"
    )
    assert heavy == "[]"


def test_command_line_imports_nothing_heavy() -> None:
    """`rlvid --help` must answer at once."""
    heavy = in_fresh_python(
        "import sys, rlvid.launch.cli\n"
        "print([m for m in ('torch', 'numpy', 'ray', 'pydantic') if m in sys.modules])"
    )
    assert heavy == "[]"


def test_actors_and_rewards_do_without_deepspeed() -> None:
    """DeepSpeed picks an accelerator and sets variables when imported; only learners want it."""
    heavy = in_fresh_python(
        "import sys, rlvid.actors.rollout_worker, rlvid.rewards.registry\n"
        "print([m for m in ('deepspeed', 'ray') if m in sys.modules])"
    )
    assert heavy == "[]"


def test_top_level_holds_only_what_is_agreed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    tops = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {top for top in tops if not top.startswith(".")} - ALLOWED == set()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_loads(path: Path) -> None:
    """And is called what its file is called, since that is what people type."""
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_starts_with_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_is_in_the_table(path: Path) -> None:
    assert f"| `{path.stem}` |" in (ROOT / "configs" / "README.md").read_text()


def test_quickstart_ships() -> None:
    """The README, the quickstart script and `rlvid evaluate` name it."""
    assert "quickstart_cpu" in {path.stem for path in RECIPES}


def test_kubernetes_job_runs_the_command_line() -> None:
    """The manifest parses, mounts the volume it writes to, and starts a recipe that ships."""
    documents = list(yaml.safe_load_all((ROOT / "launch" / "kuberay.yaml").read_text()))
    claim, job = documents
    assert (claim["kind"], job["kind"]) == ("PersistentVolumeClaim", "RayJob")
    command = job["spec"]["entrypoint"].split()
    assert command[:4] == ["python", "-m", "rlvid.launch.cli", "run"]
    folder = command[command.index("--run-folder") + 1]
    overrides = [part for part in command[4:] if "=" in part]
    assert load_recipe(command[4], overrides).cluster.address == "auto"
    cluster = job["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert any(folder.startswith(m["mountPath"]) for m in container["volumeMounts"])
        claims = [v.get("persistentVolumeClaim", {}).get("claimName") for v in pod["volumes"]]
        assert claim["metadata"]["name"] in claims


def test_kubernetes_job_has_the_locked_ray() -> None:
    """Ray refuses to connect across versions."""
    lock = (ROOT / "launch" / "environment" / "requirements-lock.txt").read_text().splitlines()
    job = list(yaml.safe_load_all((ROOT / "launch" / "kuberay.yaml").read_text()))[1]
    assert f"ray=={job['spec']['rayClusterSpec']['rayVersion']}" in lock


SCRIPTS = (
    "launch/slurm.sbatch", "launch/ray_job.sh", "launch/quickstart.sh", "launch/ssh_hosts.sh",
    "launch/ssh_node.sh", "launch/environment/install.sh", "tests/run.sh", ".ci/run",
)  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_parses_and_stops_at_the_first_error(script: str) -> None:
    path = ROOT / script
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=10)
    assert "set -euo pipefail" in path.read_text()


def test_slurm_script_without_recipe_says_how_it_is_used() -> None:
    answer = subprocess.run(
        ["bash", str(ROOT / "launch" / "slurm.sbatch")],
        capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip
    assert answer.returncode == 2
    assert answer.stderr.startswith("usage: sbatch")


OWN_ENVIRONMENTS = ("requirements-mediapipe.txt",)
"""Locks of environments that hold other versions on purpose."""


def test_locks_pin_every_package_once() -> None:
    """The environment is installed without resolving, so a second pin would win by chance."""
    locks = sorted((ROOT / "launch" / "environment").glob("requirements-*.txt"))
    shared = [path for path in locks if path.name not in OWN_ENVIRONMENTS]
    for paths in [shared, *([path] for path in locks if path not in shared)]:
        names = []
        for path in paths:
            for line in path.read_text().splitlines():
                name, pinned, _ = line.partition("==")
                assert pinned, f"{path.name}: {line!r} is not pinned"
                names.append(name.lower().replace("_", "-"))
        assert sorted(names) == sorted(set(names))
