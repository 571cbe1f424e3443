"""What Ray installs of a wheel in `py_modules`, with and without what the wheel depends on."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import install_wheel_package

from rlvid.launch.bare_wheel import make_bare

LAUNCH = Path(__file__).resolve().parents[3] / "launch"
METADATA = """Metadata-Version: 2.1
Name: shipped
Version: 1.0
Requires-Dist: surely-nowhere>=2
Requires-Dist: nor-this; extra == "dev"

Requires-Dist: is said in the text as well.
"""


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel that depends on what no index has; pip asks none here."""
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {
        "shipped/__init__.py": "",
        "shipped-1.0.dist-info/METADATA": METADATA,
        "shipped-1.0.dist-info/WHEEL": tags,
    }
    record = "shipped-1.0.dist-info/RECORD"
    path = tmp_path / "shipped-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as packed:
        for name, text in files.items():
            packed.writestr(name, text)
        packed.writestr(record, "".join(map(line_of, files, files.values())) + f"{record},,\n")
    return path


def line_of(name: str, text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"{name},sha256={digest.rstrip('=')},{len(text)}\n"


def installed(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the folders that Ray has pip make of a wheel; pip reaches no index meanwhile."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    folder = wheel.parent / "node"
    asyncio.run(install_wheel_package(str(wheel), str(folder)))
    return sorted(path.name for path in folder.iterdir())


def test_ray_would_bring_what_a_wheel_depends_on(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="Failed to install py_modules wheel"):
        installed(wheel, monkeypatch)


def test_where_the_nodes_are_told_ray_brings_the_wheel_alone(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As launch/kuberay.yaml tells them."""
    monkeypatch.setenv("PIP_NO_DEPS", "1")
    assert installed(wheel, monkeypatch) == ["shipped", "shipped-1.0.dist-info"]


def test_a_bare_wheel_brings_itself_alone_anywhere(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bare(wheel)
    assert installed(wheel, monkeypatch) == ["shipped", "shipped-1.0.dist-info"]


def test_a_bare_wheel_differs_in_what_it_depends_on_and_in_the_record_of_that(wheel: Path) -> None:
    before = contents(wheel)
    make_bare(wheel)
    after = contents(wheel)
    changed = {name for name in before if before[name] != after[name]}
    assert list(after) == list(before)
    assert changed == {"shipped-1.0.dist-info/METADATA", "shipped-1.0.dist-info/RECORD"}
    metadata = after["shipped-1.0.dist-info/METADATA"]
    assert metadata == METADATA.replace("Requires-Dist: surely-nowhere>=2\n", "").replace(
        'Requires-Dist: nor-this; extra == "dev"\n', ""
    )
    record = "".join(
        line_of(name, text) for name, text in after.items() if not name.endswith("RECORD")
    )
    assert after["shipped-1.0.dist-info/RECORD"] == f"{record}shipped-1.0.dist-info/RECORD,,\n"
    assert [path.name for path in wheel.parent.iterdir()] == [wheel.name]


def test_what_is_no_wheel_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "some.whl"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("a.txt", "a")
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"some\.whl: expected a wheel, with one METADATA, got 0"):
        make_bare(path)
    assert path.read_bytes() == before


def contents(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as packed:
        return {name: packed.read(name).decode() for name in packed.namelist()}


COMMANDS = {
    # pip, the question what a job ended with, and Python itself.
    "python": """
case "$1" in
  -m) cp "$WHEEL" "$7/rlvid-1.0-py3-none-any.whl" ;;
  -) echo 0 ;;
  *) exec "$PYTHON" "$@" ;;
esac
""",
    "ray": """cp "$(sed 's/.*\\["\\(.*\\)"\\].*/\\1/' <<< "$6")" "$SENT" """,
}


def test_a_ray_job_sends_a_bare_wheel(wheel: Path, tmp_path: Path) -> None:
    for name, code in COMMANDS.items():
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/bash\n{code}\n")
        script.chmod(0o755)
    sent = tmp_path / "sent.whl"
    subprocess.run(
        ["bash", str(LAUNCH / "ray_job.sh"), "my", "--run-folder", "shared"],
        env={
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "WHEEL": str(wheel),
            "SENT": str(sent),
            "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265",
        },
        timeout=30.0,
        check=True,
    )
    make_bare(wheel)
    assert contents(sent) == contents(wheel)
