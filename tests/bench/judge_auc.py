"""Measures how well the served embedded judge answers, by kind of question, through its HTTP API.

OMP_NUM_THREADS=1 python -m tests.bench.judge_auc > tests/bench/results/vllm_judge_auc.json

Held-out clips, questions and truth from rlvid.data.tiny_world.questions, sent by the code that
`vlm_judge` sends with. Each statement is asked plainly and negated.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlvid.data.tiny_world.questions import KINDS, YES, Question, ask, kinds_of
from rlvid.data.tiny_world.situations import (
    FAMILIES,
    Family,
    Situation,
    draw_situation,
    render_situation,
)
from rlvid.evaluation.statistics import auc
from rlvid.rewards.judges.connection import AskSettings, Connection
from rlvid.rewards.judges.frames import to_frames
from rlvid.rewards.judges.modes.base import Clip
from rlvid.rewards.judges.prompt_files import load_prompt_file
from rlvid.rewards.vllm.standalone import own_server
from tests.bench.timing import environment

FIRST_SEED = 3 * 10**9
"""Seeds no clip has that was taught or that the figures of `judge.json` come from."""
FAMILY_TURNS: tuple[Family, ...] = tuple(FAMILIES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A clip and the questions put to it."""

    situation: Situation
    questions: tuple[Question, ...]


def chosen(num: int) -> list[Asked]:
    """Return clips and questions: of every kind `num` statements, each with its negation.

    Clips of one object, of several and of events in order take turns until every kind is full, and
    a clip is asked only what its kind still lacks.
    """
    lacking = dict.fromkeys(KINDS, num)
    rng = np.random.default_rng(0)
    found: list[Asked] = []
    number = 0
    while any(lacking.values()):
        family = FAMILY_TURNS[number % len(FAMILY_TURNS)]
        situation = draw_situation(FIRST_SEED + number, "heldout", family=family)
        number += 1
        kinds = [kind for kind in kinds_of(situation) if lacking[kind]]
        if kinds:
            questions = tuple(q for kind in kinds for q in ask(situation, kind, rng))
            found.append(Asked(situation=situation, questions=questions))
        for kind in kinds:
            lacking[kind] -= 1
    return found


def answered(
    connection: Connection, asked: Sequence[Asked], timeout_s: float
) -> tuple[list[tuple[Question, float]], float]:
    """Return every question with P(yes), and the seconds it took."""
    clips = [
        Clip(to_frames(render_situation(one.situation)), fps=8.0, view=AskSettings().view)
        for one in asked
    ]
    pairs = [(clip, q) for clip, one in zip(clips, asked, strict=True) for q in one.questions]

    async def all_of_them() -> list[float]:
        judge = connection.judge
        return await asyncio.gather(*(judge.p_yes([clip.shown()], q.text) for clip, q in pairs))

    started = time.perf_counter()
    probs = connection.run(all_of_them(), timeout_s)
    seconds = time.perf_counter() - started
    return [(q, prob) for (_, q), prob in zip(pairs, probs, strict=True)], seconds


def summary(found: Sequence[tuple[Question, float]]) -> dict[str, Any]:
    """Return AUC with its 95 % interval, of both wordings and of each, accuracy, leaning to yes."""
    truth = np.array([q.answer == YES for q, _ in found])
    prob = np.array([value for _, value in found])
    negated = np.array([q.negated for q, _ in found])
    row: dict[str, Any] = {"questions": len(found)}
    for name, part in (("both", negated | ~negated), ("plain", ~negated), ("negated", negated)):
        area = auc(prob[truth & part], prob[~truth & part])
        row[f"auc_{name}"] = [round(v, 4) for v in (area.value, area.low, area.high)]
    row["accuracy"] = round(float(np.mean((prob > 0.5) == truth)), 4)
    # P(yes|q) + P(yes|not q) - 1 over pairs is twice the mean of P(yes) - 1/2.
    row["yes_bias"] = round(float(2.0 * prob.mean() - 1.0), 4)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=200, help="of a kind and wording")
    parser.add_argument("--timeout-s", type=float, default=3600.0)
    options = parser.parse_args()
    asked = chosen(options.questions)
    file = load_prompt_file("tiny_world", where="judge_auc")
    with own_server() as endpoint:
        connection = Connection(AskSettings(timeout_s=600.0, deadline_s=options.timeout_s), file)
        connection.connect([endpoint])
        found, seconds = answered(connection, asked, options.timeout_s)
        counts = connection.metrics
        connection.close()
    kinds = {kind: summary([pair for pair in found if pair[0].kind == kind]) for kind in KINDS}
    result = {
        "command": " ".join(["python -m tests.bench.judge_auc", *sys.argv[1:]]),
        "intervals": "[AUC, low, high], 95 % bootstrap",
        "model_digest": endpoint.model_digest,
        "clips": len(asked),
        "kinds": kinds,
        "questions": len(found),
        "seconds": round(seconds, 1),
        "questions_per_s": round(len(found) / seconds, 2),
        "requests": counts,
        "environment": environment(torch.device("cpu")),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
