"""What judging one clip asks of the model servers: requests, and the tokens of each.

A request is counted with all of its tokens. vLLM's prefix cache may keep a clip from one question
to the next, so for several questions about one clip this is an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlvid.config import ModelConfig
from rlvid.config.rewards import ScorerConfig
from rlvid.launch.data_engine.llm_writer import MAX_QUESTIONS
from rlvid.launch.estimate.assumptions import Assumptions
from rlvid.rewards.critics import BUILTIN
from rlvid.rewards.judges.connection import AskSettings
from rlvid.rewards.judges.prompt_files import load_prompt_file
from rlvid.rewards.judges.scorers import VlmJudge, VlmPairwise
from rlvid.rewards.registry import build_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What one scorer asks about a clip."""

    server: str
    requests: float
    clips_shown: int
    """In one request."""
    settings: AskSettings

    def tokens(self, model: ModelConfig, assumed: Assumptions) -> float:
        """Return the tokens of all requests about one clip."""
        settings = self.settings
        pixels = (settings.height or model.height) * (settings.width or model.width)
        frames = min(settings.num_frames or model.num_frames, model.num_frames)
        shown = frames * max(1, round(pixels / assumed.pixels_per_token))
        return self.requests * (self.clips_shown * shown + assumed.question_tokens)


def askings(
    scorers: Sequence[ScorerConfig], *, group_size: int, own_questions: bool
) -> tuple[Asking, ...]:
    """Return what the scorers that ask a server ask about each clip.

    A scorer of the user's that asks a server is not here: only it knows what it asks.

    Args:
        group_size: clips that a pairwise judge compares.
        own_questions: whether prompts bring questions, as those that a language model writes.

    Raises:
        ValueError: a scorer's settings are wrong.
    """
    found = []
    for position, scorer in enumerate(scorers):
        where = f"rewards.scorers.{position}.config"
        if scorer.server and scorer.use in ("vlm_judge", BUILTIN["vlm_judge"]):
            settings = build_config(VlmJudge.Config, scorer.config, where=where)
            requests = _requests(settings, own_questions=own_questions)
            shown = 1
        elif scorer.server and scorer.use in ("vlm_pairwise", BUILTIN["vlm_pairwise"]):
            settings = build_config(VlmPairwise.Config, scorer.config, where=where)
            opponents = settings.opponents or group_size - 1
            requests, shown = float(min(opponents, group_size - 1)), 2
        else:
            continue
        found.append(
            Asking(server=scorer.server, requests=requests, clips_shown=shown, settings=settings)
        )
    return tuple(found)


def _requests(config: VlmJudge.Config, *, own_questions: bool) -> float:
    """Return the requests of a judge about one clip, every gate passed."""
    file = load_prompt_file(config.prompts, where="vlm_judge.prompts")
    if config.mode in ("rubric", "grade"):
        return float(len(config.only or file.rubrics))
    if config.mode == "describe":
        return 1.0
    if config.asks_own and own_questions:
        return float(MAX_QUESTIONS)
    asked = [q for q in file.questions if not config.only or q.name in config.only]
    twice = sum(1 for q in asked if config.debias and q.negated)
    return float(len(asked) + twice)
