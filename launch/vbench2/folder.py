"""Judges the videos of a folder, several at a time, and goes on where it was stopped.

Every verdict is a line of answers.jsonl in the output folder, written when it falls. Started again,
what was judged is taken over if item, video, judges and wording are the same; what was left
unjudged is asked again.
"""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from rlvid.launch.vbench2.panel import Panel, Verdict, read_verdict
from rlvid.launch.vbench2.work import Work
from rlvid.observability.append_log import AppendLog, whole_lines
from rlvid.rewards.base import RewardError

logger = logging.getLogger(__name__)

ANSWERS = "answers.jsonl"
LOCK = "judge.lock"
FAILURES_IN_A_ROW = 10
"""Videos without an answer, one after the other, after which the server is taken for dead: each
costs a whole deadline, and there are thousands of them."""
SAY_EVERY = 50


def judge_works(
    works: Sequence[Work],
    panel: Panel,
    out: Path,
    *,
    num_threads: int = 8,
    say: Callable[[str], None] = logger.info,
) -> dict[str, Verdict]:
    """Return the verdict of every work that somebody of the panel can judge, by its key.

    Raises:
        RewardError: `FAILURES_IN_A_ROW` videos got no answer, or the seer does not see what it is
            sent; what was judged before is kept.
        ValueError: another process judges into the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _held(out):
        known = load_verdicts(out / ANSWERS)
        found: dict[str, Verdict] = {}
        todo: list[tuple[Work, str]] = []
        for work in works:
            if not panel.judges(work.item.dimension):
                continue
            stands_on = panel.stands_on(work)
            before = known.get(work.key)
            if before is not None and before.is_settled and before.stands_on == stands_on:
                found[work.key] = before
            else:
                todo.append((work, stands_on))
        say(f"{len(found)} judged before, {len(todo)} to judge")
        log = AppendLog(out / ANSWERS)
        try:
            for number, verdict in enumerate(_verdicts(todo, panel, num_threads), start=1):
                log.add(verdict.to_json())
                found[verdict.key] = verdict
                if number % SAY_EVERY == 0:
                    say(f"{number} of {len(todo)} done")
        finally:
            log.close()
    return found


def load_verdicts(path: Path) -> dict[str, Verdict]:
    """Return the last verdict of each key; a line that a crash cut short is left out.

    Raises:
        ValueError: a line is no verdict.
    """
    found: dict[str, Verdict] = {}
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            verdict = read_verdict(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"vbench2: {path}:{number}: no verdict: {error}. Remove the line, or give another "
                "--out."
            ) from error
        found[verdict.key] = verdict
    return found


def _verdicts(
    todo: Sequence[tuple[Work, str]], panel: Panel, num_threads: int
) -> Iterator[Verdict]:
    """Yield verdicts as they fall; few are in the air, so that an end comes soon."""
    failed = 0
    waiting: set[Future[Verdict]] = set()
    rest = iter(todo)
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="vbench2")
    try:
        while True:
            for work, stands_on in rest:
                waiting.add(pool.submit(panel.judge, work, stands_on))
                if len(waiting) >= num_threads:
                    break
            if not waiting:
                return
            # Every question has a deadline of its own, so a thread always comes to its end.
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for one in done:
                verdict = one.result()
                yield verdict
                failed = failed + 1 if verdict.state == "no_answer" else 0
                if failed >= FAILURES_IN_A_ROW:
                    raise RewardError(
                        f"vbench2: {failed} videos one after the other got no answer, the last "
                        f"one: {verdict.why} Start the command again to go on when it answers."
                    )
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def unjudged_reasons(verdicts: Mapping[str, Verdict]) -> dict[str, list[str]]:
    """Return key to [state, why] of every verdict that is none."""
    return {
        key: [verdict.state, verdict.why]
        for key, verdict in verdicts.items()
        if not verdict.is_settled
    }


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Keep a second process from judging everything twice into one file."""
    with (out / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"vbench2: another process judges into {str(out)!r}. End it first, or give another "
                "--out."
            ) from error
        except OSError as error:
            logger.warning("no file lock, start it once only path=%s: %s", out, error)
        yield
