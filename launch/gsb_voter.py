"""A vision-language model votes on a sheet: for dry runs, and to be compared with people.

It sees left and right as people do. Each pair is asked in both orders; a verdict that flips with
the order is a leaning to one place and counts as "same".
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlvid.data.video_files import read_mp4
from rlvid.evaluation.gsb_votes import AXES, MODEL_PREFIX, Choice, Vote, VoteStore
from rlvid.launch.gsb import SheetKey, load_key
from rlvid.records import Prompt
from rlvid.rewards.base import Endpoint, RewardError
from rlvid.rewards.judges.connection import AskSettings, Connection
from rlvid.rewards.judges.frames import to_frames
from rlvid.rewards.judges.modes.base import Clip
from rlvid.rewards.judges.modes.pairwise import Pairwise
from rlvid.rewards.judges.prompt_files import load_prompt_file, parse_facts
from rlvid.rewards.judges.sight import JudgeSightError
from rlvid.seeds import prompt_id

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVotes:
    """What became of asking a model about every pair."""

    path: Path
    num_votes: int
    num_missing: int
    """Questions it did not answer; they are no votes."""


def vote_by_model(
    folder: Path, endpoint: Endpoint, *, name: str, asks: Mapping[str, AskSettings]
) -> ModelVotes:
    """Ask the model about every pair of the sheet and write its votes beside those of people.

    Args:
        name: the votes are those of "vlm:<name>", in votes-vlm-<name>.jsonl.
        asks: axis to how it is asked; the prompt file of each needs a `pair`.

    Raises:
        ValueError: an unknown axis, or a prompt file without `pair`.
        JudgeSightError: the model does not see what it is sent.
    """
    unknown = sorted(set(asks) - set(AXES))
    if unknown or not asks:
        raise ValueError(
            f"gsb ask: axis: expected some of {', '.join(AXES)}, got {', '.join(unknown) or 'none'}"
        )
    key = load_key(folder)
    word = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    store = VoteStore(folder / f"votes-vlm-{word}.jsonl")
    store.open()
    num_votes = num_missing = 0
    try:
        for axis, settings in asks.items():
            choices = _choices(key, endpoint, settings, where=f"gsb ask {axis}")
            for pair_id, choice in choices.items():
                if choice is None:
                    num_missing += 1
                    continue
                num_votes += 1
                store.append(
                    Vote(
                        pair_id=pair_id,
                        axis=axis,
                        choice=choice,
                        voter=MODEL_PREFIX + name,
                        time_s=time.time(),
                    )
                )
    finally:
        store.close()
    return ModelVotes(path=store.path, num_votes=num_votes, num_missing=num_missing)


def choice_of(p_left_first: float, p_right_first: float) -> Choice:
    """Return the side preferred in both orders, else "same".

    Args:
        p_left_first: probability that the clip shown first is named, the left one first.
        p_right_first: the same with the right one first.
    """
    if p_left_first > 0.5 and p_right_first < 0.5:
        return "left"
    if p_left_first < 0.5 and p_right_first > 0.5:
        return "right"
    return "same"


def _choices(
    key: SheetKey, endpoint: Endpoint, settings: AskSettings, *, where: str
) -> dict[str, Choice | None]:
    """Return the choice for each pair; None where the model gave no answer."""
    file = load_prompt_file(settings.prompts, where=where)
    if file.pair is None:
        raise ValueError(
            f"{where}: prompt file {settings.prompts!r} has no section `pair`: expected one. Use a "
            "prompt file that has it."
        )
    mode, connection = Pairwise(pair=file.pair), Connection(settings, file)
    found: dict[str, Choice | None] = {}
    try:
        connection.connect([endpoint])
        for pair in key.pairs:
            left, right = (_clip(path, settings) for path in key.clips_of(pair))
            prompt = parse_facts(Prompt(prompt_id=prompt_id(pair.prompt), text=pair.prompt))
            work = mode.both_orders(connection.judge, left, right, prompt)
            try:
                found[pair.pair_id] = choice_of(*connection.run(work, settings.deadline_s))
            except JudgeSightError:
                raise
            except RewardError as error:
                logger.warning("%s: no answer pair=%s: %s", where, pair.pair_id, error)
                found[pair.pair_id] = None
    finally:
        connection.close()
    return found


def _clip(path: Path, settings: AskSettings) -> Clip:
    video, fps = read_mp4(path)
    return Clip(to_frames(video), fps=fps, view=settings.view)
