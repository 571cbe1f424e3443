"""The token of a cluster that a command starts: made once, and left alone where someone decided."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rlvid.config import Recipe
from rlvid.launch.own_token import ask_for_token

NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
STRANGER = """
import os, subprocess, sys
from rlvid.config import Recipe
from rlvid.launch.own_token import ask_for_token
ask_for_token(Recipe(name="r"))
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=10**8)
answer = ray.get(ray.remote(lambda: "worked").remote(), timeout=60)
code = f"import ray; ray.init(address={ray.get_runtime_context().gcs_address!r})"
env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
print(answer, other.returncode, "Authentication" in other.stderr)
"""


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    del sys.modules["ray"]


def test_own_cluster_gets_a_new_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    ask_for_token(Recipe(name="r"))
    first = dict(os.environ)
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    ask_for_token(Recipe(name="r"))
    assert os.environ["RAY_AUTH_TOKEN"] == first["RAY_AUTH_TOKEN"]


@pytest.mark.parametrize("decided", ["address", "environment", "imported"])
def test_what_somebody_decided_stays(monkeypatch: pytest.MonkeyPatch, decided: str) -> None:
    recipe = Recipe.model_validate(
        {"name": "r", "cluster": {"address": "auto"} if decided == "address" else {}}
    )
    before = {**os.environ, **({"RAY_AUTH_MODE": "disabled"} if decided == "environment" else {})}
    monkeypatch.setattr(os, "environ", dict(before))
    if decided == "imported":
        monkeypatch.setitem(sys.modules, "ray", sys)
    ask_for_token(recipe)
    assert os.environ == before


@pytest.mark.slow
def test_a_stranger_is_refused() -> None:
    found = subprocess.run(
        [sys.executable, "-c", STRANGER], capture_output=True, text=True, timeout=180, check=True
    )
    assert found.stdout.split() == ["worked", "1", "True"]
