"""The recipe and its sections; imports without torch."""

from rlvid.config.algorithm import AdvantageConfig, AlgorithmConfig, KlConfig
from rlvid.config.checkpoint import CheckpointConfig
from rlvid.config.cluster import ClusterConfig
from rlvid.config.data_engine import DataEngineConfig
from rlvid.config.distillation import DistillationConfig
from rlvid.config.dpo import OfflineDpoConfig
from rlvid.config.elasticity import AutoscaleConfig
from rlvid.config.learner import (
    EmaConfig,
    LearnerConfig,
    LoraConfig,
    OffloadConfig,
    OptimizerConfig,
)
from rlvid.config.model import ModelConfig
from rlvid.config.phases import EvaluateConfig, GrpoConfig, TinyBaseConfig
from rlvid.config.prompts import PromptsConfig
from rlvid.config.recipe import Recipe
from rlvid.config.rewards import RewardsConfig, ScorerConfig
from rlvid.config.rollout import RolloutConfig
from rlvid.config.sft import SftConfig
from rlvid.config.step_plan import StepPlanConfig
from rlvid.config.storage import StorageConfig
from rlvid.config.weights import WeightsConfig

__all__ = [
    "AdvantageConfig",
    "AlgorithmConfig",
    "AutoscaleConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "DataEngineConfig",
    "DistillationConfig",
    "EmaConfig",
    "EvaluateConfig",
    "GrpoConfig",
    "KlConfig",
    "LearnerConfig",
    "LoraConfig",
    "ModelConfig",
    "OfflineDpoConfig",
    "OffloadConfig",
    "OptimizerConfig",
    "PromptsConfig",
    "Recipe",
    "RewardsConfig",
    "RolloutConfig",
    "ScorerConfig",
    "SftConfig",
    "StepPlanConfig",
    "StorageConfig",
    "TinyBaseConfig",
    "WeightsConfig",
]
