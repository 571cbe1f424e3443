"""The `rewards` section: scorers, their weights, the servers they ask, the pool that runs them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field, model_validator

from rlvid.config.aggregation import AggregationConfig
from rlvid.config.base import Section, is_set
from rlvid.config.node_group import NodeGroup


class ScorerConfig(Section):
    """One scorer. What is None is as the scorer declares it (`rewards.base.Serving`)."""

    use: str
    """Short name from `rlvid rewards list`, or `package.module:Class`."""
    name: str = ""
    """Name in metrics and errors; `use` when empty."""
    weight: float = 1.0
    """In the reward; 0 scores without training on it."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of the scorer's own `Config`."""
    server: str = ""
    """Key in `rewards.servers` of the model server it asks; "" for scorers that ask none."""
    python: str = ""
    """Interpreter of an environment of its own; "" runs it in the pool's. It needs torch, numpy,
    msgpack and pydantic there, in any version; rlvid is lent to it. The pool knows nothing of what
    the class declares before it is open, so set resources, replicas and deadline here."""
    runtime_env: dict[str, Any] = Field(default_factory=dict)
    """Ray runtime environment of its replicas (env_vars, pip, working_dir, ...)."""
    batch_size: int | None = Field(default=None, ge=1)
    max_wait_s: float | None = Field(default=None, ge=0.0)
    device: str | None = None
    num_replicas: int | None = Field(default=None, ge=1)
    max_replicas: int | None = Field(default=None, ge=1)
    deadline_s: float | None = Field(default=None, gt=0.0)
    num_cpus: float | None = Field(default=None, ge=0.0)
    num_gpus: float | None = Field(default=None, ge=0.0)
    node_group: NodeGroup | None = None
    """Ray resource that only the nodes of its replicas have; None takes `rewards.node_group`."""

    @model_validator(mode="after")
    def _check(self) -> ScorerConfig:
        if self.max_replicas is not None and self.max_replicas < (self.num_replicas or 1):
            raise ValueError(
                f"max_replicas must be at least num_replicas {self.num_replicas}, got "
                f"{self.max_replicas}"
            )
        return self

    @property
    def label(self) -> str:
        return self.name or self.use

    @property
    def opinion(self) -> str:
        return opinion_of(self.use, self.config)


def opinion_of(use: str, config: Mapping[str, Any]) -> str:
    """Return whose opinion a scorer gives, whatever its label, part or threshold.

    Scorers of one class are one opinion unless their weights lie in folders of their own.
    """
    folder = config.get("folder")
    return f"{use} of {folder}" if folder else use


class ServerConfig(Section):
    """A model behind vLLM's OpenAI-compatible server, started by the pool, or external URLs."""

    model: str = "tiny_judge"
    """Model folder, or "tiny_judge", the judge that ships with rlvid."""
    urls: tuple[str, ...] = ()
    """Servers somebody else runs; the pool then starts none."""
    api_key_env: str = ""
    """Environment variable with the key of external URLs; the pool's own servers make theirs."""
    python: str = ""
    """Interpreter of the environment that has vLLM; "" is the pool's own."""
    num_replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=1.0, ge=0.0)
    num_gpus: float = Field(default=0.0, ge=0.0)
    """Of each replica, whole devices; 0 runs vLLM's CPU build."""
    node_group: NodeGroup | None = None
    """Ray resource that only the nodes of its replicas have; None takes `rewards.node_group`."""
    dtype: str = "auto"
    max_model_len: int = Field(default=4096, ge=64)
    max_images: int = Field(default=32, ge=0)
    """Images of one request."""
    max_videos: int = Field(default=2, ge=0)
    clip_fps: int | None = Field(default=None, ge=1)
    """Frame rate at which the server reads whole clips (vLLM's media_io_kwargs); None: its own
    default, which takes 2 frames a second and says nothing of it."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `vllm serve`, by name: {gpu_memory_utilization: 0.5}."""
    env: dict[str, str] = Field(default_factory=dict)
    """Further variables of its process; of ours it gets a few (`vllm.command.PASSED_ON`). They are
    written down with the recipe, so no secrets here."""
    start_deadline_s: float = Field(default=600.0, gt=0.0)
    """Seconds until /health must answer; loading a large model takes minutes."""
    max_restarts: int = Field(default=5, ge=0)
    """Of one replica, in the whole run."""
    answer_deadline_s: float = Field(default=300.0, ge=0.0)
    """Seconds a request for one token may take: one is sent now and then, and a server that lets it
    wait so long is restarted, healthy or not. Above the longest queue it ever has; 0 sends none."""
    keep_s: float = Field(default=0.0, ge=0.0)
    """Seconds the server lives on when its driver dies: a driver that resumes the run on the same
    machine within them, with the same settings, attaches to it instead of loading the model again.
    It holds its memory, and its GPUs, meanwhile. 0 ends it with the driver."""

    @model_validator(mode="after")
    def _check(self) -> ServerConfig:
        """Refuse settings of the pool's own servers beside `urls`, and the other way round."""
        names, whose, other = (
            (OF_OWN_SERVERS, "the pool starts", "urls")
            if self.urls
            else (("api_key_env",), "somebody else runs", "no urls")
        )
        for name in names:
            if is_set(self, name):
                raise ValueError(f"{name}: is of a server that {whose}, got {other}; leave it out")
        return self


OF_OWN_SERVERS = (
    "python", "num_replicas", "num_cpus", "num_gpus", "node_group", "dtype", "max_model_len",
    "max_images", "max_videos", "clip_fps", "engine_args", "env", "max_restarts",
    "answer_deadline_s", "keep_s",
)  # fmt: skip
"""Settings of a `ServerConfig` that only a server the pool starts is given."""


def unknown_server(where: str, server: str, servers: Iterable[str]) -> str:
    """Return what is wrong with a setting that names a server which is not in rewards.servers."""
    known = ", ".join(sorted(servers)) or "none"
    return f"{where}: no server {server!r} in rewards.servers; there: {known}"


def repeated_label(scorers: Iterable[ScorerConfig]) -> str | None:
    """Return the first label that several scorers have; None where each has its own."""
    labels = [scorer.label for scorer in scorers]
    return next((label for label in labels if labels.count(label) > 1), None)


class RewardsConfig(Section):
    """The reward pool."""

    scorers: tuple[ScorerConfig, ...] = (
        ScorerConfig(use="adherence"),
        ScorerConfig(use="physics"),
        ScorerConfig(use="realism"),
    )
    aggregation: AggregationConfig = AggregationConfig()
    """How several scorers become one reward."""
    servers: dict[str, ServerConfig] = Field(default_factory=dict)
    """Name to model server; scorers name one in `server`."""
    node_group: NodeGroup | None = None
    """Ray resource that only the nodes of the pool have, e.g. "rewards": of the decoders, and of
    scorers, judges and servers that name no group of their own. None is any node."""
    colocate: bool = False
    """Put scorers that ask for nothing of their own (environment, server, GPU, replicas, CPUs, node
    group) into the decoder's process: one start and 300 MB instead of one each. They then take
    turns, and a crash of one ends all; each has a process of its own otherwise."""
    decode_replicas: int = Field(default=1, ge=1)
    """Actors that turn latents into clips; each clip is decoded once and shared."""
    decode_cpus: float = Field(default=1.0, ge=0.0)
    decode_gpus: float = Field(default=0.0, ge=0.0)
    deadline_s: float = Field(default=120.0, gt=0.0)
    """Seconds one group may take to be scored by all, retries included; what is missing then is
    missing."""
    heartbeat_s: float = Field(default=5.0, gt=0.0)
    """Seconds between two questions to a process whether it lives."""
    stall_s: float = Field(default=60.0, gt=0.0)
    """Seconds a process may leave such a question unanswered, after which it is replaced and what
    it had goes to its successor: longer than a scorer ever holds the interpreter's lock, and well
    below `deadline_s`, so that there is time to score again."""
    max_attempts: int = Field(default=3, ge=1)
    """Calls one batch may fail, each on another replica where there is one, before its clips count
    as missing."""
    max_lost_in_a_row: int = Field(default=4, ge=1)
    """Crash-loop budget of each kind of process: how many may die or be killed for lateness, per
    replica, with not one call finished between them, before the run stops and names the scorer."""
    cache_entries: int = Field(default=100_000, ge=0)
    """Scores kept by clip, prompt and scorer version; 0 turns the cache off."""
    max_missing_frac: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of missing scores of one scorer in a step above which the run stops."""

    @model_validator(mode="after")
    def _check(self) -> RewardsConfig:
        if self.stall_s < self.heartbeat_s:
            raise ValueError(
                f"stall_s must be at least heartbeat_s, got {self.stall_s:g} and "
                f"{self.heartbeat_s:g}"
            )
        if (label := repeated_label(self.scorers)) is not None:
            raise ValueError(f"scorer name {label!r} appears twice; set `name` on one of them")
        if self.scorers and not any(scorer.weight for scorer in self.scorers):
            raise ValueError("every scorer has weight 0; give at least one a weight")
        for scorer in self.scorers:
            if scorer.server and scorer.server not in self.servers:
                known = ", ".join(sorted(self.servers)) or "none"
                raise ValueError(
                    f"scorer {scorer.label!r} asks server {scorer.server!r}, which is not in "
                    f"rewards.servers; there: {known}"
                )
        return self
