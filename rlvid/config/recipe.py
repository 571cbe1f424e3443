"""A recipe: the complete, resolved description of a run."""

from __future__ import annotations

from pydantic import Field, model_validator

from rlvid.config.aggregation import check_names
from rlvid.config.algorithm import AlgorithmConfig
from rlvid.config.algorithm_checks import check_replay, check_rollouts, check_selective
from rlvid.config.base import Section
from rlvid.config.cluster import ClusterConfig
from rlvid.config.data_engine import DataEngineConfig
from rlvid.config.distillation import DistillationConfig
from rlvid.config.dpo import OfflineDpoConfig
from rlvid.config.enhancement import PromptEnhancementConfig
from rlvid.config.learner import LearnerConfig
from rlvid.config.model import ModelConfig
from rlvid.config.node_group import check_groups
from rlvid.config.phases import EvaluateConfig, GrpoConfig, TinyBaseConfig
from rlvid.config.prompts import PromptsConfig
from rlvid.config.reward_model import RewardModelConfig
from rlvid.config.rewards import RewardsConfig, opinion_of, unknown_server
from rlvid.config.rollout import RolloutConfig
from rlvid.config.sft import SftConfig
from rlvid.config.stages import check_stages
from rlvid.config.storage import StorageConfig
from rlvid.config.students import check_after_distillation
from rlvid.config.weights import WeightsConfig


class Recipe(Section):
    """Everything a run depends on. Components get their section, never the whole recipe."""

    name: str = Field(min_length=1)
    seed: int = Field(default=0, ge=0)
    phases: tuple[str, ...] = ("grpo", "evaluate")
    """In order; short names or `package.module:Class`."""
    model: ModelConfig = ModelConfig()
    prompts: PromptsConfig = PromptsConfig()
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    rewards: RewardsConfig = RewardsConfig()
    learner: LearnerConfig = LearnerConfig()
    weights: WeightsConfig = WeightsConfig()
    tiny_base: TinyBaseConfig = TinyBaseConfig()
    data_engine: DataEngineConfig = DataEngineConfig()
    sft: SftConfig = SftConfig()
    dpo: OfflineDpoConfig = OfflineDpoConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    grpo: GrpoConfig = GrpoConfig()
    distillation: DistillationConfig = DistillationConfig()
    prompt_enhancement: PromptEnhancementConfig = PromptEnhancementConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: ClusterConfig = ClusterConfig()
    storage: StorageConfig = StorageConfig()

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if not self.phases:
            raise ValueError("phases must name at least one phase, e.g. [grpo, evaluate]")
        trained = self.trained_opinions
        judges = {judge.opinion for judge in self.evaluate.judges}
        if "evaluate" in self.phases and judges <= trained:
            raise ValueError(
                "evaluate.judges must name at least one scorer that did not train, "
                f"got {sorted(judges)}; the rewards with weight are {sorted(trained)}"
            )
        self._check_judge_names()
        self._check_servers()
        self._check_dimensions()
        self._check_stages(trained)
        self._check_transport()
        check_groups(self, self.cluster.address)
        self._check_early_stop(judges - trained)
        if "grpo" in self.phases:
            check_rollouts(self.algorithm, self.rollout)
            check_replay(self.algorithm, self.learner, self.grpo)
        check_after_distillation(self.phases, self.distillation, self.rollout)
        check_names(
            self.rewards.aggregation,
            {scorer.label: scorer.weight for scorer in self.rewards.scorers},
            self.algorithm.advantage.std,
        )
        check_selective(
            self.algorithm,
            {scorer.label: scorer.weight for scorer in self.rewards.scorers},
            self.rewards.aggregation,
        )
        best_of_n = self.algorithm.advantage.best_of_n
        if best_of_n is not None and best_of_n > self.rollout.group_size:
            raise ValueError(
                f"algorithm.advantage.best_of_n must be at most rollout.group_size "
                f"{self.rollout.group_size}, got {best_of_n}"
            )
        return self

    @property
    def trained_opinions(self) -> set[str]:
        """What trains, not by label: a trained scorer under another name is no second opinion."""
        trained = {scorer.opinion for scorer in self.rewards.scorers if scorer.weight}
        if self.algorithm.use == "refl":
            reward = self.algorithm.refl.reward
            trained.add(opinion_of(reward.use, reward.config))
        return trained

    def _check_transport(self) -> None:
        without = [
            name
            for name, section in (("learner", self.learner), ("rollout", self.rollout))
            if not section.num_gpus
        ]
        if self.weights.transport == "nccl" and without:
            raise ValueError(
                f"weights.transport: nccl goes from GPU to GPU, got num_gpus 0 in "
                f"{' and '.join(without)}; set weights.transport=object_store"
            )

    def _check_dimensions(self) -> None:
        known = {judge.label for judge in self.evaluate.judges}
        known |= {scorer.label for scorer in self.rewards.scorers}
        odd = [label for label in self.evaluate.dimensions if label not in known]
        if odd:
            raise ValueError(
                f"evaluate.dimensions: {odd[0]!r} is no judge or scorer; there: "
                f"{', '.join(sorted(known))}"
            )

    def _check_stages(self, trained: set[str]) -> None:
        if self.evaluate.stages is None:
            return
        scorers = (*self.rewards.scorers, *self.evaluate.judges)
        check_stages(
            self.evaluate.stages,
            known={scorer.label for scorer in scorers},
            trained={scorer.label for scorer in scorers if scorer.opinion in trained},
            use_ema=self.evaluate.use_ema,
        )

    def _check_judge_names(self) -> None:
        """One name is one scorer in the pool; another judge of that name would not be asked."""
        same: dict[str, object] = {"name": "", "weight": 1.0}
        scorers = {scorer.label: scorer for scorer in self.rewards.scorers}
        for judge in self.evaluate.judges:
            scorer = scorers.get(judge.label, judge)
            if scorer.model_copy(update=same) != judge.model_copy(update=same):
                raise ValueError(
                    f"evaluate.judges: {judge.label!r} is also the name of a scorer in "
                    "rewards.scorers with other settings, which would be asked in its place; set "
                    "another `name` on the judge"
                )

    def _check_servers(self) -> None:
        """Every server that is named is there, and one that nobody names is not started."""
        servers = self.rewards.servers
        for position, judge in enumerate(self.evaluate.judges):
            if judge.server and judge.server not in servers:
                where = f"evaluate.judges.{position}.server"
                raise ValueError(unknown_server(where, judge.server, servers))
        asked = {scorer.server for scorer in (*self.rewards.scorers, *self.evaluate.judges)}
        idle = sorted(set(servers) - asked - {self.data_engine.prompts.llm.server})
        if idle and not any(":" in phase for phase in self.phases):
            raise ValueError(
                f"rewards.servers.{idle[0]}: no scorer, no judge and no data_engine.prompts.llm "
                "asks it, and it would be started all the same; name it as the `server` of one, "
                "or leave it out"
            )

    def _check_early_stop(self, judges: set[str]) -> None:
        grpo = self.grpo
        if not grpo.early_stop.judge_falls:
            return
        if not (judges and grpo.evaluate_every and grpo.evaluate_prompts >= 2):
            raise ValueError(
                "grpo.early_stop.judge_falls watches a judge on held-out prompts: expected a judge "
                "in evaluate.judges that did not train, grpo.evaluate_every above 0 and "
                f"grpo.evaluate_prompts of at least 2, got {sorted(judges)}, "
                f"{grpo.evaluate_every} and {grpo.evaluate_prompts}"
            )
