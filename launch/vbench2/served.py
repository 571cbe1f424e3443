"""`Seer` and `Reader` of VBench-2.0 as models behind OpenAI-compatible servers.

A yes is P(yes) above one half, by the log-probabilities of the answer's first token; a description
is JSON by a schema, so one that was cut off is an error and not a shorter story. An answer that is
missing raises a `RewardError`: it is never a "no", and the video is left unjudged.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from rlvid.evaluation.vbench2.judging import Part
from rlvid.rewards.base import Endpoint
from rlvid.rewards.judges.connection import AskSettings, Connection, view_version
from rlvid.rewards.judges.frames import Frames, View
from rlvid.rewards.judges.modes.base import Clip, Judge
from rlvid.rewards.judges.prompt_files import PromptFile

T = TypeVar("T")
THRESHOLD = 0.5
"""Of P(yes) / (P(yes) + P(no)); the benchmark looks for the word "yes" in a greedy answer."""
WORDS = PromptFile(name="vbench2", version=1)
"""Its words for yes and no; the questions are `judging`'s."""
MAX_CHARACTERS = 4000
"""Of a description; a grammar needs a bound, or a small model never ends its string."""
DESCRIPTION = {
    "type": "object",
    "properties": {"description": {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS}},
    "required": ["description"],
    "additionalProperties": False,
}
AS_JSON = 'Answer as JSON, {"description": "..."}, with all of the text inside the quotes.'


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One thing that was asked, and what was answered."""

    judge: Literal["seer", "reader"]
    asked: str
    shown: str = ""
    """Which frames; "" for the reader."""
    p_yes: float | None = None
    says: str | None = None
    """A description; a note has either this or `p_yes`."""


class ServedModel:
    """One model and the line to its replicas; shared by the threads that judge videos."""

    def __init__(
        self, endpoints: Sequence[Endpoint], settings: AskSettings, *, max_tokens: int = 1024
    ) -> None:
        """`settings.concurrency` is at least the number of threads, so that none waits for
        another within its deadline; `settings.prompts` is not used."""
        if not endpoints:
            raise ValueError("vbench2: expected the endpoint of a model, got none.")
        self.settings = settings
        self.max_tokens = max_tokens
        self._endpoints = tuple(endpoints)
        self._connection = Connection(settings, WORDS)

    def connect(self) -> None:
        """Open the line; RewardError when the replicas are not of one model."""
        self._connection.connect(self._endpoints)

    @property
    def identity(self) -> str:
        """What an answer stands on besides question and video."""
        asked = self.settings
        size = f"{asked.height}x{asked.width}"
        return (
            f"{self._endpoints[0].model_digest} {view_version(asked)} {asked.num_frames} {size} "
            f"{asked.columns} {self.max_tokens}"
        )

    @property
    def judge(self) -> Judge:
        return self._connection.judge

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return an answer; RewardTimeoutError when it takes more than the deadline."""
        return self._connection.run(work, self.settings.deadline_s)

    def close(self) -> None:
        self._connection.close()


class ServedReader:
    """A model that reads; for one video, whose notes it adds to."""

    def __init__(self, model: ServedModel, notes: list[Note]) -> None:
        self._model = model
        self._notes = notes

    def yes(self, question: str) -> bool:
        p_yes = self._model.run(self._model.judge.p_yes([], question))
        self._notes.append(Note(judge="reader", asked=question, p_yes=p_yes))
        return p_yes > THRESHOLD


class ServedSeer:
    """A model that sees the one video it was opened for."""

    def __init__(self, model: ServedModel, frames: Frames, fps: float, notes: list[Note]) -> None:
        """`frames` are uint8 [T, H, W, 3], all of the video's."""
        self._model = model
        self._frames, self._fps = frames, fps
        self._notes = notes
        self._clips: dict[Part, Clip] = {}

    def yes(self, question: str, part: Part = "all") -> bool:
        return self._ask(question, self._clip(part), part)

    def describe(self, request: str) -> str:
        shown = [self._clip("all").shown()]
        answer = self._model.run(
            self._model.judge.json_object(
                shown, f"{request} {AS_JSON}", DESCRIPTION, max_tokens=self._model.max_tokens
            )
        )
        says = str(answer["description"]).strip()
        self._notes.append(Note(judge="seer", asked=request, shown="all", says=says))
        return says

    def yes_each_second(self, question: str) -> Sequence[bool]:
        """Ask about every whole second; what is left over at the end belongs to the last one."""
        stretches = seconds_of(len(self._frames), self._fps)
        return [
            self._ask(question, self._show(self._frames[one]), f"frames {one.start}-{one.stop - 1}")
            for one in stretches
        ]

    def _ask(self, question: str, clip: Clip, shown: str) -> bool:
        # Only the last frame alone is sent as an image, whatever the layout.
        frames = clip.shown("last" if shown == "last" else "all")
        p_yes = self._model.run(self._model.judge.p_yes([frames], question))
        self._notes.append(Note(judge="seer", asked=question, shown=shown, p_yes=p_yes))
        return p_yes > THRESHOLD

    def _clip(self, part: Part) -> Clip:
        """Return all shown frames, or the first half of them; each is encoded once."""
        key: Part = "all" if part == "last" else part
        if key not in self._clips:
            self._clips[key] = self._show(self._frames, halves=key == "first_half")
        return self._clips[key]

    def _show(self, frames: Frames, *, halves: bool = False) -> Clip:
        """Choose the frames as the benchmark does: evenly over the video, then its first half."""
        view = self._model.settings.view
        if view.layout == "tiny_judge":  # chooses by itself
            return Clip(frames[: -(-len(frames) // 2)] if halves else frames, fps=8.0, view=view)
        count = min(view.num_frames or len(frames), len(frames))
        chosen = View(num_frames=count).indices(len(frames))
        # Fewer frames over the same time are a slower frame rate.
        fps = self._fps * max(1, count - 1) / max(1, len(frames) - 1)
        if halves:
            chosen = chosen[: -(-len(chosen) // 2)]
        every = View(
            layout=view.layout,
            num_frames=None,
            height=view.height,
            width=view.width,
            columns=view.columns,
        )
        return Clip(frames[chosen], fps=fps, view=every)


def seconds_of(num_frames: int, fps: float) -> list[slice]:
    """Return the frames of every second; a video shorter than one is one stretch."""
    starts = [round(second * fps) for second in range(max(1, int(num_frames / fps)))]
    return [
        slice(start, stop) for start, stop in zip(starts, [*starts[1:], num_frames], strict=True)
    ]
