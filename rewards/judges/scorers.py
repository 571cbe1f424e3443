"""The scorers that ask a vision-language model: `vlm_judge` and `vlm_pairwise`."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, Endpoint, RewardError, RewardTimeoutError, Serving
from rlvid.rewards.judges.connection import AskSettings, Connection, view_version
from rlvid.rewards.judges.modes.base import Clip, Mode, Verdict
from rlvid.rewards.judges.modes.describe import DescribeThenJudge
from rlvid.rewards.judges.modes.own import OwnQuestions
from rlvid.rewards.judges.modes.pairwise import Pairwise
from rlvid.rewards.judges.modes.questions import Combine, QuestionSet
from rlvid.rewards.judges.modes.rubric import RubricJson, RubricTokens
from rlvid.rewards.judges.prompt_files import PromptFile, load_prompt_file, parse_facts
from rlvid.rewards.judges.sight import JudgeSightError
from rlvid.rewards.vllm.external import api_key, base_url

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
    """With or without /v1."""
    model: str
    api_key_env: str = ""
    """Environment variable with its key, of the scorer's process."""

    @property
    def endpoint(self) -> Endpoint:
        """ValueError when the variable of the key is not set."""
        url = base_url(self.url)
        key = api_key(self.api_key_env, where="vlm_judge.decider")
        word = f"{self.model}@{url}"
        return Endpoint(url=url, model=self.model, model_digest=word, api_key=key)


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
        asks_own: bool = False
        """Of mode questions: ask those that came with the prompt, where it brings any."""
        decides_by: Literal["logprob", "text"] = "logprob"
        decider: Decider | None = None
        """Of `describe`; null lets the describing model decide."""

    def __init__(self, config: Config) -> None:
        """ValueError for a prompt file that lacks what the mode needs, or a key that is not set."""
        self._config = config
        self._file = load_prompt_file(config.prompts, where="vlm_judge.prompts")
        self._deadline_s = SERVING.deadline_s
        self._connection = Connection(config, self._file)
        self._decider = None if config.decider is None else Connection(config, self._file)
        self._decides = [] if config.decider is None else [config.decider.endpoint]
        self._answered: dict[str, float] = {}
        """Values of the last call that failed, by `_key`: each of its clips is asked for again."""
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
        if self._decider is not None:
            self._decider.connect(self._decides)

    def keep_deadline(self, deadline_s: float) -> None:
        """Give up on a call after so many seconds."""
        self._deadline_s = deadline_s

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] and B prompts -> [B]; NaN where a gate excludes the clip.

        A call in which a clip fails fails as a whole, as the pool wants it: it then asks clip by
        clip, and tries only those again that fail alone. The others' values are kept for that.

        Raises:
            RewardError: a clip could not be judged; the first reason.
            JudgeSightError: the judge does not see what it is sent.
            ValueError: a prompt lacks a fact that the questions name.
        """
        if self._answered and len(videos) == 1:
            known = self._answered.pop(self._key(videos[0], prompts[0]), None)
            if known is not None:
                return torch.tensor([known], dtype=torch.float32)
        answers = self._answers(videos, prompts)
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        if failures:
            if len(answers) > 1:
                self._answered = {
                    self._key(video, prompt): answer.value
                    for video, prompt, answer in zip(videos, prompts, answers, strict=True)
                    if isinstance(answer, Verdict)
                }
                if self._answered and isinstance(failures[0], RewardTimeoutError):
                    # Late as a whole is not asked clip by clip, and here the others did answer.
                    raise RewardError(str(failures[0])) from failures[0]
            raise failures[0]
        verdicts = [answer for answer in answers if isinstance(answer, Verdict)]
        excluded = [verdict.reason for verdict in verdicts if math.isnan(verdict.value)]
        if excluded:
            logger.warning("clips not judged count=%d first=%r", len(excluded), excluded[0])
        return torch.tensor([verdict.value for verdict in verdicts], dtype=torch.float32)

    def explain(self, videos: Tensor, prompts: Sequence[Prompt]) -> list[Verdict]:
        """Return what `score` is made of, clip by clip; a clip that failed has value NaN.

        Raises:
            RewardError: every clip failed; the first reason.
        """
        verdicts, failures = [], []
        for answer in self._answers(videos, prompts):
            if isinstance(answer, Verdict):
                verdicts.append(answer)
                continue
            if isinstance(answer, JudgeSightError) or not isinstance(answer, RewardError):
                raise answer
            failures.append(answer)
            verdicts.append(Verdict(value=math.nan, reason=str(answer)))
        if failures and len(failures) == len(verdicts):
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

    def _answers(self, videos: Tensor, prompts: Sequence[Prompt]) -> list[Verdict | BaseException]:
        """Return for each clip what was made of it or what it failed with."""
        mode = self._mode()
        clips = self._connection.clips(videos)
        known = [parse_facts(prompt) for prompt in prompts]
        return self._connection.run(self._judge_all(mode, clips, known), self._deadline_s)

    def _key(self, video: Tensor, prompt: Prompt) -> str:
        """Return what tells a clip, its prompt and the judge's model from others."""
        digest = hashlib.blake2b(video.cpu().contiguous().numpy().tobytes(), digest_size=16)
        told = (prompt.text, sorted(prompt.facts.items()), prompt.questions)
        words = (*told, self._connection.model_digest)
        digest.update(repr(words).encode())
        return digest.hexdigest()

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
            questions = [q for q in file.questions if q.name in items]
            if config.mode == "p_yes":  # a gate decides what else is asked; here it is the score
                questions = [q.model_copy(update={"gate": "none"}) for q in questions]
            asked = QuestionSet(
                questions=questions,
                combine=config.combine,
                threshold=config.threshold,
                debiases=config.debias,
            )
            return OwnQuestions(otherwise=asked) if config.asks_own else asked
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
        self._deadline_s = SERVING.deadline_s
        self._connection = Connection(config, self._file)
        self.clip_spec = ClipSpec(fps=config.fps)

    @property
    def version(self) -> str:
        return "pairwise; " + _version(self._config, self._file, self._connection)

    def connect(self, endpoints: Sequence[Endpoint]) -> None:
        self._connection.connect(endpoints)

    def keep_deadline(self, deadline_s: float) -> None:
        """Give up on a call after so many seconds."""
        self._deadline_s = deadline_s

    def score_group(self, videos: Tensor, prompt: Prompt) -> Tensor:
        """[G, T, 3, H, W] of one prompt -> [G] win rates in [0, 1].

        Raises:
            RewardError: a clip is left with no comparison, see `modes.pairwise`.
        """
        assert self._file.pair is not None, "checked when it was opened"
        judge = self._connection.judge
        mode = Pairwise(pair=self._file.pair, opponents=self._config.opponents)
        clips = self._connection.clips(videos)
        work = mode.win_rates(judge, clips, parse_facts(prompt))
        rates = self._connection.run(work, self._deadline_s)
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
    gates = [item.name for item in file.questions if item.name in names and item.gate != "none"]
    if config.mode == "questions" and len(gates) == len(names):
        raise ValueError(
            f"{where}: every question asked is a gate ({', '.join(gates)}): expected one at least "
            "that counts, since a gate is in no score. Name another in config.only, or use mode "
            "p_yes for the probability of this one."
        )
    return names


def _version(settings: AskSettings, file: PromptFile, connection: Connection) -> str:
    model = connection.model_digest or "not connected"
    return (
        f"prompts {file.name} v{file.version} {file.digest}; model {model}; "
        f"frames {view_version(settings)}"
    )
