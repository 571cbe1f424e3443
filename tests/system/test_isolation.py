"""A scorer in an interpreter of its own: what it gets, what it cannot do, how it ends."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rlvid.config.rewards import ScorerConfig
from rlvid.data.prompts import with_media
from rlvid.records import Prompt
from rlvid.rewards.base import (
    ClipSpec,
    Endpoint,
    GroupReward,
    RewardError,
    RewardTimeoutError,
    UsesServer,
)
from rlvid.rewards.isolation.child_process import ChildProcess
from rlvid.rewards.registry import open_scorer

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests.system.obeying_scorer"
CLIPS = torch.rand(3, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def entry(use: str = "Obeys", **settings: Any) -> ScorerConfig:
    python = settings.pop("python", sys.executable)
    return ScorerConfig(use=f"{HERE}:{use}", python=python, **settings)


def opened(config: ScorerConfig) -> Any:
    return open_scorer(config, "rewards.scorers.0")


def ask(scorer: Any, order: str) -> list[float]:
    prompts = [Prompt(prompt_id="p", text=order, facts={"colour": "red"})] * len(CLIPS)
    return list(scorer.score(CLIPS, prompts).tolist())


def is_running(pid: int) -> bool:
    """Whether the process is there; one that only waits to be reaped is not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(pid: int, seconds: float = 20.0) -> None:
    give_up = time.monotonic() + seconds
    while is_running(pid):
        assert time.monotonic() < give_up, f"process {pid} is still there"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def scorer() -> Iterator[Any]:
    """One child for the tests that leave it alive."""
    os.environ["RAY_AUTH_TOKEN"] = "secret"
    config = entry(deadline_s=25.0, runtime_env={"env_vars": {"MY_FOLDER": "here"}})
    one = opened(config)
    del os.environ["RAY_AUTH_TOKEN"]
    yield one
    one.close()


def test_scores_are_those_of_the_class_itself(scorer: Any) -> None:
    """Bytes there and back must not change a number."""
    assert ask(scorer, "score") == CLIPS.mean(dim=(1, 2, 3, 4)).tolist()


def test_what_the_scorer_declares_is_known_outside(scorer: Any) -> None:
    """The pool prepares clips by it, and caches scores by the version."""
    assert scorer.clip_spec == ClipSpec(fps=8, min_frames=2, colour="grey", value_range=(-1.0, 1.0))
    assert (scorer.serving.batch_size, scorer.serving.deadline_s) == (3, 30.0)
    assert scorer.version.startswith("obeys-7|")
    assert scorer.versions["torch"] == torch.__version__


def test_printing_does_not_break_the_answers(scorer: Any) -> None:
    """Any library may print; the pipe of the answers must not be standard output."""
    assert ask(scorer, "print") == ask(scorer, "score")


def test_what_the_scorer_raises_is_told_and_it_lives_on(scorer: Any) -> None:
    before = ask(scorer, "pid")
    with pytest.raises(RewardError, match="KeyError: 'wheels'"):
        ask(scorer, "raise wheels")
    assert ask(scorer, "pid") == before


@pytest.mark.parametrize(
    ("name", "expected"), [("PATH", 1.0), ("MY_FOLDER", 1.0), ("RAY_AUTH_TOKEN", 0.0)]
)
def test_the_child_gets_no_token_of_the_cluster(scorer: Any, name: str, expected: float) -> None:
    """A reward package is somebody else's code; it must not be able to submit Ray jobs."""
    assert ask(scorer, f"variable {name}") == [expected] * 3


def test_endpoints_of_a_model_server_reach_it(scorer: Any) -> None:
    assert isinstance(scorer, UsesServer)
    scorer.connect([Endpoint(url="http://127.0.0.1:1", model="m", model_digest="d")] * 2)
    assert ask(scorer, "servers") == [2.0] * 3


def test_media_of_a_prompt_reach_it(scorer: Any, tmp_path: Path) -> None:
    """A scorer of image-to-video compares the clip with the picture; the child is elsewhere."""
    Image.new("RGB", (40, 30), (200, 40, 90)).save(tmp_path / "first.png")
    order = Prompt(prompt_id="p", text="media first_frame")
    prompt = with_media(order, {"first_frame": "first.png"}, where="test", folder=tmp_path)
    size = float((tmp_path / "first.png").stat().st_size)
    assert scorer.score(CLIPS, [prompt] * len(CLIPS)).tolist() == [size] * len(CLIPS)


def test_the_deadline_of_the_recipe_reaches_it(scorer: Any) -> None:
    """A judge in an environment of its own waits as long as the recipe says, as one in ours."""
    assert ask(scorer, "deadline") == [25.0] * 3


def test_an_interpreter_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^rewards.scorers.0.python: no interpreter at '/no/py'"):
        opened(entry(python="/no/py"))


def test_a_missing_package_is_named_with_its_interpreter(tmp_path: Path) -> None:
    """Found before training starts, and not as a traceback of some pipe."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True, timeout=60
    )
    python = str(tmp_path / "bin" / "python")
    with pytest.raises(ValueError, match=r"bin/python \(Python 3.*cannot import numpy.*torch"):
        opened(entry(python=python))


def test_a_program_that_is_no_python_is_an_error_and_no_hang(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho wrong door >&2\nexit 3\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(RewardError, match=r"exit status 3.*wrong door"):
        opened(entry(python=str(script)))


@pytest.mark.slow
def test_a_hung_scorer_costs_its_deadline_and_is_replaced_at_the_next_call() -> None:
    scorer = opened(entry(deadline_s=10.0))
    pid = int(ask(scorer, "pid")[0])
    began = time.monotonic()
    with pytest.raises(RewardTimeoutError, match="did not answer in time"):
        ask(scorer, "hang 300")
    assert time.monotonic() - began < 15.0
    wait_until_gone(pid)
    scorer.connect([Endpoint(url="http://127.0.0.1:1", model="m", model_digest="d")])
    # The endpoints were given again to the new process, which knew of none.
    assert ask(scorer, "servers") == [1.0] * 3
    assert int(ask(scorer, "pid")[0]) != pid
    scorer.close()


@pytest.mark.slow
def test_a_score_that_waits_for_a_dead_server_learns_of_its_successor(tmp_path: Path) -> None:
    """`connect` comes in another thread while the score runs; it must not wait for its end."""
    scorer = opened(entry(deadline_s=60.0))
    scorer.connect([Endpoint(url="http://127.0.0.1:1", model="m", model_digest="d")])
    mark = tmp_path / "running"
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(ask, scorer, f"tell {mark}")
        give_up = time.monotonic() + 30.0
        while not mark.exists():
            assert time.monotonic() < give_up, "the score does not run"
            time.sleep(0.02)
        began = time.monotonic()
        successors = [Endpoint(url="http://127.0.0.1:2", model="m", model_digest="d")] * 2
        scorer.connect(successors)
        with pytest.raises(RewardError, match="ended: its model servers changed"):
            waiting.result(timeout=30.0)
        assert time.monotonic() - began < 10.0
        scorer.connect(successors)  # told once more of what it knows, it ends nothing
    assert ask(scorer, "servers") == [2.0] * 3
    scorer.close()


@pytest.mark.slow
def test_a_dead_child_is_an_error_with_its_last_words_and_is_replaced() -> None:
    scorer = opened(entry())
    with pytest.raises(RewardError, match=r"died \(exit status 9\).*last words: segmentation"):
        ask(scorer, "die segmentation")
    assert ask(scorer, "score") == CLIPS.mean(dim=(1, 2, 3, 4)).tolist()
    scorer.close()


@pytest.mark.slow
def test_the_child_ends_with_its_scorer_and_with_its_parent() -> None:
    """A judge that outlives a killed run keeps its memory, and its GPU, for ever."""
    scorer = opened(entry())
    pid = int(ask(scorer, "pid")[0])
    del scorer
    wait_until_gone(pid)
    code = (
        "import time\n"
        "from tests.system.test_isolation import ask, entry, opened\n"
        "s = opened(entry())\nprint(int(ask(s, 'pid')[0]), flush=True)\nask(s, 'hang 25')\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_running(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait(timeout=10)
    wait_until_gone(pid)


@pytest.mark.slow
def test_a_group_wise_scorer_stays_group_wise_and_a_refusal_is_the_users_error() -> None:
    group = opened(entry("Plain"))
    assert isinstance(group, GroupReward)
    assert not isinstance(group, UsesServer)
    scores = group.score_group(CLIPS, Prompt(prompt_id="p", text="x"))
    assert sorted(scores.tolist()) == [0.0, 1.0, 2.0]
    with pytest.raises(ValueError, match=r"no such weights \(in .*python"):
        opened(entry(config={"refuses": "no such weights"}))
    with pytest.raises(ValueError, match=r"scorers\.0\.config\.refusez.*'refuses'"):
        opened(entry(config={"refusez": "x"}))


def test_a_child_killed_by_its_owner_leaves_no_error_in_the_thread_that_reads_its_lines() -> None:
    """The owner may reap it first, and then there is no process to wait for."""
    failed: list[threading.ExceptHookArgs] = []
    before, threading.excepthook = threading.excepthook, failed.append
    try:
        # What it leaves behind holds standard error open until after it is reaped.
        command = ["sh", "-c", "setsid sleep 1 & echo started >&2; exec sleep 60"]
        child = ChildProcess(command, {"PATH": os.environ["PATH"]}, where="here")
        give_up = time.monotonic() + 10.0
        while child.last_lines() != "started":
            assert time.monotonic() < give_up, "it does not start"
            time.sleep(0.01)
        time.sleep(0.2)  # until setsid has left its group
        child.kill()
        assert not child.is_alive
        child._drain.join(timeout=10.0)
        assert not child._drain.is_alive()
    finally:
        threading.excepthook = before
    assert not failed
