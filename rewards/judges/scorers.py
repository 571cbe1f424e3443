"""The scorers that ask a vision-language model: `vlm_judge` and `vlm_pairwise`."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, Endpoint, RewardError, Serving
from rlvid.rewards.judges.connection import AskSettings, Connection, view_version
from rlvid.rewards.judges.modes.base import Clip, Mode, Verdict
from rlvid.rewards.judges.modes.describe import DescribeThenJudge
from rlvid.rewards.judges.modes.pairwise import Pairwise
from rlvid.rewards.judges.modes.questions import Combine, QuestionSet
from rlvid.rewards.judges.modes.rubric import RubricJson, RubricTokens
from rlvid.rewards.judges.prompt_files import PromptFile, load_prompt_file, parse_facts
from rlvid.rewards.judges.sight import JudgeSightError

logger = logging.getLogger(__name__)

MODE_SECTIONS = {
    "p_yes": "questions",
    "questions": "questions",
    "rubric": "rubrics",
    "grade": "rubrics",
    "describe": "describe",
}
"""Mode -> section of the prompt file that it needs."""
SERVING = Serving(batch_size=32, num_cpus=0.5, deadline_s=600.0, max_wait_s=0.02)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decider:
    """Another model that decides on descriptions, behind an OpenAI-compatible URL."""

    url: str
    model: str
    api_key_env: str = ""
    """Environment variable with its key."""


class VlmJudge:
    """Asks a vision-language model about each clip.

    Sees and is blind to what its model is; `judges.bias` measures its leaning to yes and whether
    it sees time at all. Gamed by: text in the picture that tells the model what to answer.
    """

    CLAIMS: tuple[str, ...] = (
        *("reversed_gravity", "teleport", "vanish", "hover", "appear", "split", "merge"),
        *("through_wall", "sink", "still", "jitter"),
        *("flicker", "shake", "warp", "shuffle", "freeze_and_jump"),
        *("wrong_colour", "wrong_object", "wrong_direction", "wrong_motion", "wrong_camera"),
    )
    """Of the embedded judge asked all its questions; other models and prompts claim nothing."""
    BLIND_TO: tuple[str, ...] = (
        "gravity that is somewhat too weak or too strong",
        "noise, blur and fine grids",
        "over-exposure, in part",
        "clips of more than three objects",
    )
    serving = SERVING

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(AskSettings):
        mode: Literal["p_yes", "questions", "rubric", "grade", "describe"] = "questions"
        """p_yes: one question. questions: all of the file. rubric: grade and reason as JSON.
        grade: expectation over the tokens of the grades. describe: describe, then judge."""
        only: tuple[str, ...] = ()
        """Names of the questions or rubrics used; () uses all."""
        combine: Combine = "mean"
        threshold: float = 0.5
        """P(yes) above which an answer counts as yes."""
        debias: bool = False
        """Ask each question's negation too; twice the requests."""
        max_tokens: int = 256
        """Of a JSON answer."""
        decides_by: Literal["logprob", "text"] = "logprob"
        decider: Decider | None = None
        """Of `describe`; null lets the describing model decide."""

    def __init__(self, config: Config) -> None:
        """ValueError when the prompt file is not there or lacks what the mode needs."""
        self._config = config
        self._file = load_prompt_file(config.prompts, where="vlm_judge.prompts")
        self._connection = Connection(config, self._file)
        self._decider = None if config.decider is None else Connection(config, self._file)
        _items(config, self._file)
        self.clip_spec = ClipSpec(fps=config.fps)
        is_whole = config.mode == "questions" and not config.only
        if not (is_whole and config.prompts == "tiny_world" and config.layout == "tiny_judge"):
            self.CLAIMS = self.BLIND_TO = ()

    @property
    def version(self) -> str:
        decider = self._config.decider
        parts = [self._config.mode, _version(self._config, self._file, self._connection)]
        return "; ".join(parts + ([f"decider {decider.model}"] if decider else []))

    def connect(self, endpoints: Sequence[Endpoint]) -> None:
        self._connection.connect(endpoints)
        decider = self._config.decider
        if decider is not None and self._decider is not None:
            key = os.environ.get(decider.api_key_env, "") if decider.api_key_env else ""
            word = f"{decider.model}@{decider.url}"
            self._decider.connect(
                [Endpoint(url=decider.url, model=decider.model, model_digest=word, api_key=key)]
            )

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] and B prompts -> [B]; NaN where the judge gave no usable answer.

        Raises:
            RewardError: no clip could be judged; the first reason.
            JudgeSightError: the judge does not see what it is sent.
            ValueError: a prompt lacks a fact that the questions name.
        """
        verdicts = self.explain(videos, prompts)
        missing = [verdict.reason for verdict in verdicts if math.isnan(verdict.value)]
        if missing:
            logger.warning("clips not judged count=%d first=%r", len(missing), missing[0])
        return torch.tensor([verdict.value for verdict in verdicts], dtype=torch.float32)

    def explain(self, videos: Tensor, prompts: Sequence[Prompt]) -> list[Verdict]:
        """Return what `score` is made of, clip by clip."""
        mode = self._mode()
        clips = self._connection.clips(videos)
        known = [parse_facts(prompt) for prompt in prompts]
        found = self._connection.run(self._judge_all(mode, clips, known), SERVING.deadline_s)
        verdicts, failures = [], []
        for answer in found:
            if isinstance(answer, Verdict):
                verdicts.append(answer)
                continue
            if isinstance(answer, JudgeSightError) or not isinstance(answer, RewardError):
                raise answer
            failures.append(answer)
            verdicts.append(Verdict(value=math.nan, reason=str(answer)))
        if failures and len(failures) == len(clips):
            raise failures[0]
        return verdicts

    @property
    def metrics(self) -> dict[str, int]:
        return self._connection.metrics

    def close(self) -> None:
        """End the thread of the client; tests and scripts call it, an actor just ends."""
        self._connection.close()
        if self._decider is not None:
            self._decider.close()

    async def _judge_all(
        self, mode: Mode, clips: Sequence[Clip], prompts: Sequence[Prompt]
    ) -> list[Verdict | BaseException]:
        judge = self._connection.judge
        work = (mode.judge(judge, c, p) for c, p in zip(clips, prompts, strict=True))
        return await asyncio.gather(*work, return_exceptions=True)

    def _mode(self) -> Mode:
        config, file = self._config, self._file
        _ = self._connection.judge  # raises when there is none
        items = _items(config, file)
        if config.mode in ("p_yes", "questions"):
            return QuestionSet(
                questions=[q for q in file.questions if q.name in items],
                combine=config.combine,
                threshold=config.threshold,
                debiases=config.debias,
            )
        rubrics = [rubric for rubric in file.rubrics if rubric.name in items]
        if config.mode == "rubric":
            return RubricJson(rubrics=rubrics, max_tokens=config.max_tokens)
        if config.mode == "grade":
            return RubricTokens(rubrics=rubrics)
        assert file.describe is not None, "_items checked it"
        decider = None if self._decider is None else self._decider.judge
        return DescribeThenJudge(
            describe=file.describe, decider=decider, decides_by=config.decides_by
        )


class VlmPairwise:
    """Win rate of each clip against the others of its group, each pair shown in both orders.

    Needs a group of two at least; the clip of a group of one is not judged.
    """

    serving = SERVING

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(AskSettings):
        opponents: int | None = None
        """Clips each is compared with, see `modes.pairwise`; null: all others."""

    def __init__(self, config: Config) -> None:
        """ValueError when the prompt file is not there or has no `pair`."""
        self._config = config
        self._file = load_prompt_file(config.prompts, where="vlm_pairwise.prompts")
        if self._file.pair is None:
            raise ValueError(
                f"vlm_pairwise.prompts: {config.prompts!r} has no section `pair`: expected one. "
                "Use a prompt file that has it."
            )
        self._connection = Connection(config, self._file)
        self.clip_spec = ClipSpec(fps=config.fps)

    @property
    def version(self) -> str:
        return "pairwise; " + _version(self._config, self._file, self._connection)

    def connect(self, endpoints: Sequence[Endpoint]) -> None:
        self._connection.connect(endpoints)

    def score_group(self, videos: Tensor, prompt: Prompt) -> Tensor:
        """[G, T, 3, H, W] of one prompt -> [G] win rates in [0, 1]; NaN where none was answered."""
        assert self._file.pair is not None, "checked when it was opened"
        judge = self._connection.judge
        mode = Pairwise(pair=self._file.pair, opponents=self._config.opponents)
        clips = self._connection.clips(videos)
        work = mode.win_rates(judge, clips, parse_facts(prompt))
        rates = self._connection.run(work, SERVING.deadline_s)
        return torch.tensor(rates, dtype=torch.float32)

    @property
    def metrics(self) -> dict[str, int]:
        return self._connection.metrics

    def close(self) -> None:
        self._connection.close()


def _items(config: VlmJudge.Config, file: PromptFile) -> set[str]:
    """Return the names of the questions or rubrics in use.

    Raises:
        ValueError: the file has none of what the mode needs, or not those of `only`.
    """
    section = MODE_SECTIONS[config.mode]
    where = f"vlm_judge: prompt file {file.name!r}"
    if not getattr(file, section):
        raise ValueError(
            f"{where} has no `{section}`, which mode {config.mode} needs. Use another file or mode."
        )
    if section == "describe":
        return set()
    known = [item.name for item in (file.questions if section == "questions" else file.rubrics)]
    for name in config.only:
        if name not in known:
            raise ValueError(
                f"{where}: no {section} {name!r} (config.only): expected some of {', '.join(known)}"
            )
    names = set(config.only or known)
    if config.mode == "p_yes" and len(names) != 1:
        raise ValueError(
            f"{where}: mode p_yes asks one question, got {len(names)}. Name it in config.only, or "
            "use mode questions."
        )
    return names


def _version(settings: AskSettings, file: PromptFile, connection: Connection) -> str:
    model = connection.model_digest or "not connected"
    return (
        f"prompts {file.name} v{file.version} {file.digest}; model {model}; "
        f"frames {view_version(settings)}"
    )
