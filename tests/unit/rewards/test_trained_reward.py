"""The scorer of a trained reward model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvid.config.reward_model import RewardModelConfig
from rlvid.config.rewards import ScorerConfig
from rlvid.data.clips import ClipShape
from rlvid.data.tiny_world import all_facts, caption, render_clip
from rlvid.models import digest_folder
from rlvid.models.tiny import reward_model_folder
from rlvid.records import Prompt
from rlvid.reward_models.folder import save_reward_model
from rlvid.reward_models.measure import ZScore
from rlvid.reward_models.network import build_reward_model
from rlvid.rewards.base import version_of
from rlvid.rewards.calibration.calibrate import calibrate
from rlvid.rewards.calibration.report import REQUIRED_AUC
from rlvid.rewards.critics.trained_reward import TrainedReward
from rlvid.rewards.registry import open_scorer
from rlvid.testing import check_reward
from tests.bench.reward_model_auc import table

ROOT = Path(__file__).resolve().parents[3]


def _folder(folder: Path, *, head: str = "ties", mean: float = 0.0, seed: int = 0) -> Path:
    config = RewardModelConfig.model_validate({"backbone": {"width": 4}, "head": head})
    model = build_reward_model(config, vocabulary=("red", "ball"), fps=8, seed=seed)
    if head == "spread":
        with torch.no_grad():
            model.head[..., 1] = torch.linspace(-1.0, 1.0, model.head.shape[1])
    save_reward_model(
        folder, model, config, clip=ClipShape(), vocabulary=("red", "ball"),
        z_scores={part: ZScore(mean=mean, std=0.5) for part in ("VQ", "MQ", "TA")},
    )  # fmt: skip
    return folder


def _clip() -> tuple[torch.Tensor, list[Prompt]]:
    facts = all_facts()[0]
    return render_clip(facts, 0)[None], [Prompt(prompt_id="x", text=caption(facts))]


def _open(folder: Path, **config: Any) -> TrainedReward:
    scorer = open_scorer(
        ScorerConfig(use="trained_reward", config={"folder": str(folder), **config}), "here"
    )
    assert isinstance(scorer, TrainedReward)
    return scorer


def test_trained_reward_keeps_the_contract(tmp_path: Path) -> None:
    check_reward(_open(_folder(tmp_path)))


@pytest.mark.slow
def test_shipped_model_keeps_its_claims_in_every_part() -> None:
    """On clips of another seed than the one that its claims were chosen with."""
    scorers = {
        part: open_scorer(ScorerConfig(use="trained_reward", config={"part": part}), "here")
        for part in ("overall", "VQ", "MQ", "TA")
    }
    report = calibrate(scorers, num_clips=100, seed=1)
    assert {row.scorer for row in report.rows} == {"overall", "VQ", "MQ"}, "TA claims nothing"
    assert [(row.scorer, row.breakage, row.auc) for row in report.rows if not row.is_kept] == []


def test_published_table_is_of_the_model_that_ships() -> None:
    """Weights or claims changed without measuring anew would leave figures of nothing."""
    result = json.loads((ROOT / "tests/bench/results/reward_model.json").read_text())
    assert result["model_digest"] == digest_folder(reward_model_folder())
    assert table(result) in (ROOT / "rlvid/reward_models/README.md").read_text()
    for part in ("overall", "VQ", "MQ"):
        scorer = open_scorer(ScorerConfig(use="trained_reward", config={"part": part}), "here")
        assert isinstance(scorer, TrainedReward)
        lows = {name: cells[part]["auc"][1] for name, cells in result["breakages"].items()}
        assert set(scorer.CLAIMS) == {name for name, low in lows.items() if low >= REQUIRED_AUC}


def test_clip_and_version_are_the_folder_s(tmp_path: Path) -> None:
    """Two trainings must not share cached scores."""
    one, two = (_open(_folder(tmp_path / str(n), seed=n)) for n in (0, 1))
    assert (one.clip_spec.fps, one.clip_spec.num_frames, one.clip_spec.height) == (8, 17, 32)
    assert len(version_of(one)) == 32
    assert version_of(one) != version_of(two)


def test_overall_is_the_sum_of_the_z_scored_parts(tmp_path: Path) -> None:
    videos, prompts = _clip()
    plain, shifted = (_folder(tmp_path / name, mean=m) for name, m in (("a", 0.0), ("b", 1.0)))
    parts = [float(_open(plain, part=part).score(videos, prompts)) for part in ("VQ", "MQ", "TA")]
    assert float(_open(plain).score(videos, prompts)) == pytest.approx(sum(parts), abs=1e-5)
    moved = float(_open(shifted, part="VQ").score(videos, prompts))
    assert moved == pytest.approx(parts[0] - 1.0 / 0.5, abs=1e-5)


def test_confidence_bound_takes_off_what_the_model_is_unsure_of(tmp_path: Path) -> None:
    videos, prompts = _clip()
    folder = _folder(tmp_path, head="spread")
    scores = [
        float(_open(folder, part="MQ", confidence_bound=c).score(videos, prompts))
        for c in (0.0, 1.0, 2.0)
    ]
    assert scores[0] > scores[1] > scores[2]
    assert scores[0] - scores[1] == pytest.approx(scores[1] - scores[2], abs=1e-5)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"folder": "artifact:own"}, "made by a reward_model phase of the same run"),
        ({"folder": "/nowhere"}, "no reward model at '/nowhere'"),
        ({"confidence_bound": 1.0}, "has no spread"),
        ({"confidence_bound": -1.0}, "expected 0 or more, got -1.0"),
        ({"part": "XQ"}, "part"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, config: dict[str, Any], complaint: str
) -> None:
    folder = _folder(tmp_path)
    with pytest.raises(ValueError, match=complaint):
        _open(folder, **{key: value for key, value in config.items() if key != "folder"}) if (
            "folder" not in config
        ) else _open(Path(config["folder"]))
