"""The code of an unpacked wheel comes before a checkout in the current folder; real Ray."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WHEEL_FIRST = Path(__file__).resolve().parents[3] / "launch/wheel_first.py"
DRIVER = """
import json, subprocess, sys

import ray
import rlvid


def seen() -> list[str]:
    import beside, rlvid, rlvid.part

    command = [sys.executable, "-c", "import rlvid; print(rlvid.__file__)"]
    child = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [rlvid.__file__, rlvid.part.__file__, child.strip()]


ray.init(
    address="local", num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20,
    log_to_driver=False, logging_level="ERROR",
)
print(json.dumps([seen(), ray.get(ray.remote(seen).remote())]))
"""


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A wheel's code and a checkout with the same modules, and a plugin beside the latter."""
    code, checkout = tmp_path / "code", tmp_path / "checkout"
    for folder in (code, checkout):
        (folder / "rlvid").mkdir(parents=True)
        for name in ("__init__.py", "part.py"):
            (folder / "rlvid" / name).touch()
        (folder / "rlvid/driver.py").write_text(DRIVER)
    (checkout / "beside.py").touch()
    shutil.copy(WHEEL_FIRST, code / "sitecustomize.py")
    return code, checkout


def run(code: Path, checkout: Path, *arguments: str, more: str = "") -> str:
    path = os.pathsep.join(part for part in (str(code), more) if part)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout, env={**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"},
        check=True, capture_output=True, text=True, timeout=120.0,
    ).stdout  # fmt: skip


def test_driver_workers_and_their_child_processes_import_the_wheel(
    folders: tuple[Path, Path],
) -> None:
    """`python -m` and Ray put the current folder first, with the plugin that both need."""
    code, checkout = folders
    driver, worker = json.loads(run(code, checkout, "-m", "rlvid.driver").splitlines()[-1])
    wheel = str(code / "rlvid/__init__.py")
    assert driver == [wheel, str(code / "rlvid/part.py"), wheel]
    assert worker == driver


def test_what_the_site_customises_is_still_done(folders: tuple[Path, Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import sys; sys.of_the_site = True\n")
    said = run(
        *folders, "-c", "import rlvid, sys; print(sys.of_the_site, rlvid.__file__)", more=str(site)
    )
    assert said.split() == ["True", str(folders[0] / "rlvid/__init__.py")]
