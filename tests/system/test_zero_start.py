"""A rank starts without a compiler, and whatever a killed one left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlvid.learners.testing import run_ranks

JOIN = """
import torch
from rlvid.learners import zero_engine

zero_engine.join_ranks(torch.device("cpu"), timeout_s=30.0)
"""


def test_rank_starts_beside_the_lock_of_a_killed_compilation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch waits for ever for such a lock, whose holder's death releases nothing."""
    built = tmp_path / "extensions" / "deepspeed_shm_comm"
    built.mkdir(parents=True)
    (built / "lock").touch()
    script = tmp_path / "join.py"
    script.write_text(JOIN)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(built.parent))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_ranks(script, 1, timeout_s=60.0) == [0]
    assert [path.name for path in built.iterdir()] == ["lock"]
