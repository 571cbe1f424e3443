"""What a gang is started with, and what it refuses to start with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlvid.actors import gang_peers
from rlvid.actors.gang_peers import GangSettings, start_peers
from rlvid.actors.gang_process import GangError
from rlvid.config import ModelConfig
from rlvid.models.causal_layout import BlockLayout
from rlvid.models.policy import Policy
from rlvid.models.student import StudentSampling

TINY = Policy(model_path="tiny")
TWO = GangSettings(num_ranks=2, start_deadline_s=30.0, deadline_s=30.0)


def test_each_process_sees_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that Ray gave the actor, by number or by name; the actor itself uses the first."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5f, 7")
    expected = {1: {"CUDA_VISIBLE_DEVICES": "GPU-5f"}, 2: {"CUDA_VISIBLE_DEVICES": "7"}}
    assert gang_peers._environments(3, "cuda") == expected
    assert gang_peers._environments(3, "cpu") == {1: {}, 2: {}}
    with pytest.raises(ValueError, match="expected 4 GPUs for this actor, it sees 3; set rollout"):
        gang_peers._environments(4, "cuda")


def test_devices_that_nobody_listed_are_those_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gang_peers._environments(2, "cuda") == {1: {"CUDA_VISIBLE_DEVICES": "1"}}


def test_one_device_for_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model\.device: expected auto, cuda or cpu .*'cuda:1'"):
        start_peers(TWO, TINY, ModelConfig(device="cuda:1"), None, num_threads=1)


def test_causal_student_is_refused(tmp_path: Path) -> None:
    """Its forwards read a cache that no message carries."""
    StudentSampling(sigmas=(1.0, 0.5), layout=BlockLayout()).save(tmp_path)
    student = Policy(model_path=str(tmp_path))
    with pytest.raises(ValueError, match="is a causal student, .* Sample it with one process"):
        start_peers(TWO, student, ModelConfig(), None, num_threads=1)


def test_peer_that_loads_too_long_is_named() -> None:
    hurried = GangSettings(num_ranks=2, start_deadline_s=0.1, deadline_s=30.0)
    peers = start_peers(hurried, TINY, ModelConfig(device="cpu"), None, num_threads=1)
    try:
        with pytest.raises(
            GangError, match=r"ranks \[1\] did not load their policy in cluster\.st"
        ):
            peers.wait_loaded()
    finally:
        peers.end()
    assert not peers.are_alive
