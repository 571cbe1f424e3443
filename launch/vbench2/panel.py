"""Who judges one video: models that are asked, or specialists; and what came of it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import xxhash

from rlvid.durable import digest_file
from rlvid.evaluation.vbench2 import judging, rules
from rlvid.launch.vbench2.served import Note, ServedModel, ServedReader, ServedSeer
from rlvid.launch.vbench2.specialists import (
    FORMS,
    MeasuredFile,
    NotMeasuredError,
    Specialist,
    value_of,
)
from rlvid.launch.vbench2.work import UnreadableError, Work, read_frames
from rlvid.rewards.base import RewardError
from rlvid.rewards.judges.sight import JudgeSightError

MODEL_ASKED_TOO = "Instance_Preservation"
"""Has a form for a specialist's measurement, and a question for a model where there is none."""

State = Literal["judged", "excluded", "no_answer", "not_measured", "unreadable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one `Work`; a line of answers.jsonl."""

    key: str
    dimension: str
    stands_on: str
    """Digest of item, videos, judges and wording; a verdict of another is not taken over."""
    state: State
    """The last three are unjudged: asked again the next time, and never a 0."""
    value: float | None = None
    why: str = ""
    """Of an unjudged one."""
    notes: Sequence[Note] = ()
    """Every question and answer, those before a failure too."""
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_settled(self) -> bool:
        return self.state in ("judged", "excluded")

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """The judges of a run; used by several threads at once."""

    seer: ServedModel
    reader: ServedModel
    """May be the seer."""
    specialists: Mapping[str, Specialist] = field(default_factory=dict)
    """Dimension to who measures it."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Dimension to what its specialist is called in the result."""

    def judges(self, dimension: str) -> bool:
        """Return whether somebody here can judge the dimension."""
        return dimension in self.specialists or _is_asked(dimension)

    def stands_on(self, work: Work) -> str:
        """Return the digest that a verdict on this work has."""
        parts: list[object] = [asdict(work.item), [digest_file(path) for path in work.videos]]
        parts.append(wording())
        if work.item.dimension in self.specialists:
            specialist = self.specialists[work.item.dimension]
            if isinstance(specialist, MeasuredFile):
                parts.append(specialist.find(work.videos, work.item))
            else:
                parts.append(digest_file(Path(inspect.getfile(type(specialist)))))
        else:
            parts += [self.seer.identity, self.reader.identity]
        return str(xxhash.xxh3_128_hexdigest(json.dumps(parts).encode()))

    def judge(self, work: Work, stands_on: str) -> Verdict:
        """Return the verdict on a video, an unjudged one where something failed.

        Raises:
            JudgeSightError: the seer does not see what it is sent, so no answer is worth anything.
            ValueError: a specialist's measurement is not of its form.
        """
        dimension = work.item.dimension
        notes: list[Note] = []
        measured: Mapping[str, Any] = {}
        state: State
        value, why = None, ""
        try:
            if dimension in self.specialists:
                measured = self.specialists[dimension].measure(work.videos, work.item)
                value = value_of(work.item, measured, where=f"vbench2: {work.key}")
            else:
                value = self._asked(work, notes)
            state = "excluded" if value is None else "judged"
        except NotMeasuredError as error:
            state, why = "not_measured", str(error)
        except UnreadableError as error:
            state, why = "unreadable", str(error)
        except JudgeSightError:
            raise
        except RewardError as error:
            state, why = "no_answer", str(error)
        return Verdict(
            key=work.key,
            dimension=dimension,
            stands_on=stands_on,
            state=state,
            value=value,
            why=why,
            notes=notes,
            measured=measured,
        )

    def _asked(self, work: Work, notes: list[Note]) -> float | None:
        frames, fps = read_frames(work.videos[0])
        seer = ServedSeer(self.seer, frames, fps, notes)
        return judging.judge(work.item, seer, ServedReader(self.reader, notes)).value


def _is_asked(dimension: str) -> bool:
    return dimension not in FORMS or dimension == MODEL_ASKED_TOO


@lru_cache(maxsize=1)
def wording() -> str:
    """Return a digest of the questions and rules, by the source they are in."""
    files = [Path(str(module.__file__)) for module in (judging, rules)]
    return " ".join(digest_file(file) for file in files)


def read_verdict(values: Mapping[str, Any]) -> Verdict:
    """Return the verdict of a line; TypeError or KeyError where it is of another form."""
    notes = [Note(**note) for note in values["notes"]]
    return Verdict(**{**values, "notes": notes})
