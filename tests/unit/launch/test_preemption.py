"""Being asked to make room: what a signal does, where, and what a launcher is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlvid.bell import Bell
from rlvid.launch import cli, preemption
from rlvid.launch.cluster import keep_sigterm_handler
from rlvid.launch.preemption import EXIT_STATUS, Preempted, Preemption, open_preemption


@pytest.fixture(autouse=True)
def handlers_are_given_back() -> Iterator[None]:
    """A test must not leave another handler to the ones after it."""
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in preemption.SIGNALS} == before


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_raises_the_flag_of_a_loop_that_drains(number: signal.Signals) -> None:
    def loop() -> None:
        with open_preemption(60.0) as asked, asked.deferred():
            assert not asked.is_requested
            assert asked.seconds_left == float("inf")
            os.kill(os.getpid(), number)
            assert asked.is_requested
            assert asked.reason == number.name
            assert 50.0 < asked.seconds_left <= 60.0

    with pytest.raises(Preempted, match=f"{number.name}.*under way is finished"):
        loop()


def test_outside_a_loop_a_signal_ends_the_run_there() -> None:
    """While models load nobody looks at a flag, and the grace time would pass unused."""

    def load() -> None:
        with open_preemption(60.0):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5.0)

    with pytest.raises(Preempted, match="SIGTERM"):
        load()


def test_a_signal_wakes_the_loop_that_sleeps_on_its_bell() -> None:
    """Even if it comes while the main thread is inside the bell."""

    def loop() -> None:
        bell = Bell()
        with open_preemption(60.0) as asked, asked.deferred(bell.ring):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            started = time.monotonic()
            assert bell.wait(30.0)
            assert time.monotonic() - started < 5.0
            assert asked.is_requested

    with pytest.raises(Preempted):
        loop()


def test_a_notice_file_counts_like_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(preemption.NOTICE_VARIABLE, str(tmp_path / "notice"))
    monkeypatch.setattr(preemption, "LOOK_EVERY_S", 0.0)
    asked = Preemption(60.0)
    assert not asked.is_requested
    (tmp_path / "notice").touch()
    assert asked.is_requested
    assert str(tmp_path / "notice") in asked.reason


def test_the_first_reason_and_its_time_stay() -> None:
    asked = Preemption(60.0)
    asked.request("one")
    left = asked.seconds_left
    asked.request("two")
    assert (asked.reason, asked.seconds_left <= left) == ("one", True)


def test_install_beside_the_main_thread_is_refused() -> None:
    found: list[str] = []

    def install() -> None:
        try:
            Preemption(1.0).install()
        except ValueError as error:
            found.append(str(error))

    thread = threading.Thread(target=install, name="other")
    thread.start()
    thread.join(timeout=10.0)
    assert "in thread 'other': expected the main thread" in found[0]


def test_ray_does_not_keep_the_signal() -> None:
    """`ray.init` sets a handler of its own, which exits without draining anything."""
    with open_preemption(60.0) as asked:
        mine = signal.getsignal(signal.SIGTERM)
        with keep_sigterm_handler():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) == mine == asked._on_signal


DRAINS = """
import sys, time
from rlvid.launch import cli, preemption
preemption.SAME_REQUEST_S = 0.2

def run():
    with preemption.open_preemption(60.0) as asked, asked.deferred():
        print("ready", flush=True)
        while not asked.is_requested:
            time.sleep(0.01)
        print("drains", flush=True)
        time.sleep(float(sys.argv[1]))

cli.app = run
cli.main()
"""


@pytest.mark.parametrize("hurried", [False, True])
def test_the_process_exits_with_the_status_that_launchers_queue_on(hurried: bool) -> None:
    """After its drain, or at once when it is asked a second time."""
    with subprocess.Popen(
        [sys.executable, "-c", DRAINS, "60" if hurried else "0.3"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "drains\n"
        process.send_signal(signal.SIGTERM)  # the same one, sent to the group as well
        if hurried:
            time.sleep(0.4)
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30.0)
    assert process.returncode == EXIT_STATUS == cli.PREEMPTED_STATUS == 75
    if hurried:
        assert said == "rlvid: SIGTERM again, ends at once\n"
    else:
        assert said == (
            "preempted: asked to make room (SIGTERM): what was under way is finished; start it "
            "again with --resume-if-exists\n"
        )
