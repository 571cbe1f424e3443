"""The `data_engine` section: weak dimensions to prompts to scored clips (arXiv:2506.10639)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlvid.config.base import Section, refuse_unread
from rlvid.config.intake import IntakeConfig
from rlvid.config.prompts import PromptsConfig


class WeakDimensionConfig(Section):
    """A dimension that the user knows to be weak, as GigaVideo-1 has a person name it."""

    scorer: str
    """Label of the scorer in `rewards.scorers` that judges it."""
    description: str = ""
    """What the dimension is about, for the writer of prompts."""
    seed_prompts: tuple[str, ...] = ()
    """A few examples; () takes the broad prompts that scored lowest."""


class WeaknessConfig(Section):
    """Which dimensions are trained, and how they are found."""

    given: tuple[WeakDimensionConfig, ...] = ()
    """Named by the user; () finds them by scoring a broad prompt set."""
    num_prompts: int = Field(default=64, ge=4)
    """Broad prompts that are rendered and scored."""
    seeds_per_prompt: int = Field(default=2, ge=1)
    max_dimensions: int = Field(default=4, ge=1)
    """At most so many, the weakest first. The paper gives no number; ours."""
    below: float = 0.9
    """A dimension is weak when the upper end of its interval lies below this mean score. Scores
    must have a common scale; our critics and judges reach from 0 to 1."""
    num_clusters: int = Field(default=3, ge=1)
    """Clusters of the low scorers of a dimension, each named by its words."""
    low_frac: float = Field(default=0.3, gt=0.0, le=1.0)
    """Share of the prompts of a dimension that count as its low scorers."""


class LlmConfig(Section):
    """A language model behind an OpenAI-compatible endpoint that writes prompts and questions."""

    url: str = ""
    """"http://127.0.0.1:8000"; "" takes `server`."""
    server: str = ""
    """Key in `rewards.servers`: a vLLM server of ours."""
    model: str = ""
    """Name under which an external server serves it."""
    api_key_env: str = ""
    templates: str = "default"
    """Prompt templates: one that ships, or a path that ends in .yaml."""
    temperature: float = Field(default=0.9, ge=0.0)
    max_tokens: int = Field(default=1024, ge=16)
    deadline_s: float = Field(default=120.0, gt=0.0)
    max_attempts: int = Field(default=3, ge=1)
    """Tries of one request, a broken answer counting as one."""


class EnginePromptsConfig(Section):
    """The prompts P_s, written for the weak dimensions."""

    writer: Literal["grammar", "llm"] = "grammar"
    """grammar: the tiny world's own, without a language model. llm: analogy, augmentation and
    questions by `llm`."""
    llm: LlmConfig = LlmConfig()
    plausibility: Literal["none", "grammar", "llm"] = "none"
    """Who drops prompts that nobody could film, in the short form and in the long one. none: no
    one. grammar: what is no caption of the tiny world goes, for broad prompts of it. llm: `llm` is
    asked; a prompt to which it gives no readable answer goes as well, counted by itself."""
    num_prompts: int = Field(default=128, ge=1)
    """Kept after the filters, over all weak dimensions in equal shares."""
    max_rounds: int = Field(default=20, ge=1)
    """Rounds of writing before it is given up to fill the number."""
    min_words: int = Field(default=3, ge=1)
    max_words: int = Field(default=200, ge=1)
    min_distance: float = Field(default=0.0, ge=0.0, le=1.0)
    """Cosine distance below which a prompt repeats an earlier one; 0 refuses equal texts only. The
    tiny world's captions differ by single words, so there only equal texts repeat."""
    leak_distance: float = Field(default=0.0, ge=0.0, le=1.0)
    """The same against every held-out prompt; 0 refuses equal texts only."""
    embedder: Literal["words", "minilm"] = "words"
    """words: hashed word and letter counts, no model. minilm: sentence embeddings of the extra
    `specialists`."""

    @property
    def asks_llm(self) -> bool:
        """Whether anything is asked of `llm`."""
        return "llm" in (self.writer, self.plausibility)


class RealClipsConfig(Section):
    """Real pairs P_r V_r for the realism anchor, and the prompts P_r rendered by the policy."""

    source: Literal["tiny_world", "videos", "none"] = "tiny_world"
    """tiny_world: simulated clips of training captions. videos: those of `intake`."""
    intake: IntakeConfig = IntakeConfig()
    """Where videos come from and which of them are taken."""
    num_clips: int = Field(default=256, ge=1)
    """At most; the tiny world gives exactly so many."""
    clip_seed: int = 1_000_000
    """Of the tiny world; far from the seeds of `sft.clip_seed`, so that none is shown twice."""
    num_recaptions: int = Field(default=0, ge=0)
    """Real captions that the policy renders too (P_r V_s), one clip each. GigaVideo-1's reviewers
    report that mixing them with P_s V_s lowers accuracy; off by default."""

    @model_validator(mode="after")
    def _check(self) -> RealClipsConfig:
        for name, sources in REAL_READERS.items():
            if self.source not in sources:
                why = f"by source {self.source}, but by {', '.join(sources)}"
                refuse_unread(self, (name,), why)
        if self.source == "videos":
            self._check_intake()
        return self

    def _check_intake(self) -> None:
        intake = self.intake
        if intake.max_clips is not None:
            raise ValueError(
                f"intake.max_clips: num_clips bounds the clips of a data set: expected null, got "
                f"{intake.max_clips}; set num_clips"
            )
        if not intake.sources:
            raise ValueError(
                "intake.sources: source 'videos' needs folders or files to read, got none; name "
                "some, or set source to tiny_world or none"
            )
        if intake.max_text_area is not None:
            raise ValueError(
                "intake.max_text_area: nothing measures text in a run: expected null, got "
                f"{intake.max_text_area:g}; leave it out, or drop such clips beforehand"
            )


REAL_READERS = {
    "intake": ("videos",),
    "num_clips": ("tiny_world", "videos"),
    "clip_seed": ("tiny_world",),
    "num_recaptions": ("tiny_world", "videos"),
}
"""Setting of real clips to the sources that read it."""


class DataEngineConfig(Section):
    """Length and parts of the phase. Scorers are those of `rewards`."""

    name: str = "dataset"
    """`sft.clips: artifact:<name>` trains on what it makes."""
    broad: PromptsConfig = PromptsConfig()
    """Prompts on which weakness is looked for, and which seed the writer."""
    weakness: WeaknessConfig = WeaknessConfig()
    prompts: EnginePromptsConfig = EnginePromptsConfig()
    clips_per_prompt: int = Field(default=4, ge=1)
    """Rendered of every prompt, each from noise of its own."""
    real: RealClipsConfig = RealClipsConfig()
    num_denoising_steps: int = Field(default=20, ge=1)
    """Euler steps; the clips are made as an evaluation makes them."""
    guidance_scale: float | None = Field(default=None, ge=1.0)
    """None takes `rollout.guidance_scale`."""
    groups_in_flight: int = Field(default=16, ge=1)
    """Prompts between issue and disk, which bounds the memory."""
    groups_per_shard: int = Field(default=64, ge=1)
    """Prompts in one Parquet file of the manifest."""
    num_clips_shown: int = Field(default=6, ge=0)
    """Clips that the report shows of the best, and as many of the worst; one of a prompt."""

    @model_validator(mode="after")
    def _check(self) -> DataEngineConfig:
        if self.prompts.min_words > self.prompts.max_words:
            raise ValueError(
                f"prompts.min_words must be at most max_words {self.prompts.max_words}, "
                f"got {self.prompts.min_words}"
            )
        llm = self.prompts.llm
        if self.prompts.asks_llm and bool(llm.url) == bool(llm.server):
            asking = "writer" if self.prompts.writer == "llm" else "plausibility"
            raise ValueError(
                f"prompts.llm: {asking} 'llm' needs exactly one of url and server, "
                f"got url {llm.url!r} and server {llm.server!r}"
            )
        if not self.prompts.asks_llm:
            why = "where neither writer nor plausibility is llm"
            refuse_unread(self.prompts, ("llm",), why, where="prompts.")
        if self.prompts.plausibility == "grammar" and self.broad.source != "tiny_world":
            raise ValueError(
                "prompts.plausibility: 'grammar' knows the captions of the tiny world only, got "
                f"broad.source {self.broad.source!r}; use 'llm' or 'none'"
            )
        return self
