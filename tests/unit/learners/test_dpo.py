"""Offline dpo: pairs from scores or from a user, and one rank that trains on them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlvid.config import OfflineDpoConfig
from rlvid.data.clips import ClipShape
from rlvid.data.pairs import PAIRS_FILE, open_folder_pairs
from rlvid.data.video_files import write_mp4
from rlvid.learners.dpo import DpoLearner, DpoSettings, dpo_settings
from rlvid.learners.preferences import of_dataset, open_preferences
from rlvid.learners.testing import tiny_recipe
from rlvid.models.policy import Policy
from rlvid.observability.metrics import check_names
from rlvid.testing import tiny_model
from rlvid.weights import digest_tensors
from tests.unit.learners.clip_sets import dataset

SHAPE = ClipShape(num_frames=9, height=16, width=16, fps=8)
FOUR_EACH = [[0.1, 0.9, 0.4, 0.6], [0.5, 0.5, 0.5, 0.5], [0.3, 0.7, 0.2, 0.2]]


def opened(folder: Path, pairs: Path, **changes: Any) -> DpoLearner:
    return DpoLearner(settings_of(folder, pairs, **changes), tiny_model(0))


def settings_of(folder: Path, pairs: Path, **changes: Any) -> DpoSettings:
    settings = {
        "num_steps": 20,
        "batch_size": 3,
        "pairs": str(pairs),
        "learner": {"zero_stage": 1, "optimizer": {"learning_rate": 1e-3}},
    }
    recipe = tiny_recipe(dpo={**settings, **changes})
    return dpo_settings(recipe, Policy(model_path="tiny"), folder)


def digest_of(learner: DpoLearner) -> str:
    return digest_tensors(dict(learner.trainee.engine.full_parameters()))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return dataset(tmp_path / "set", FOUR_EACH)


def test_best_against_worst_of_every_prompt(stored: Path) -> None:
    """A prompt whose clips all score alike has no pair; ties go to the earlier clip."""
    assert of_dataset(stored, OfflineDpoConfig()).pairs == ((1, 0), (9, 10))
    two = OfflineDpoConfig.model_validate({"objective": {"max_pairs": 2}})
    assert of_dataset(stored, two).pairs == ((1, 0), (3, 2), (9, 10), (8, 11))
    wide = OfflineDpoConfig(min_margin=0.6)
    assert of_dataset(stored, wide).pairs == ((1, 0),)


def test_pairs_by_one_scorer_leave_out_who_lacks_its_score(stored: Path) -> None:
    """The data set's second and third prompts were made for, and scored by, `motion`."""
    found = of_dataset(stored, OfflineDpoConfig(by="motion"))
    assert [len(found.clips), found.pairs] == [8, ((5, 6),)]
    with pytest.raises(ValueError, match="no two clips of one prompt"):
        of_dataset(stored, OfflineDpoConfig(by="nobody"))


def test_loss_starts_at_log_two(tmp_path: Path, stored: Path) -> None:
    """Policy and reference are one policy before the first step, whatever the pair."""
    report = opened(tmp_path, stored).train_steps(0, 1)[0]
    assert report.metrics["dpo/loss/mean"] == pytest.approx(math.log(2.0), abs=1e-6)
    assert report.metrics["dpo/implicit_margin/mean"] == 0.0
    assert report.metrics["dpo/grad_norm/total"] > 0.0
    check_names(report.metrics)


def test_pairs_come_into_order(tmp_path: Path, stored: Path) -> None:
    """Two pairs of random latents, learned by heart."""
    learner = opened(tmp_path, stored, learner={"mode": "full", "zero_stage": 0})
    reports = learner.train_steps(0, 20)
    assert all(r.metrics["dpo/pairs_right/frac"] == 1.0 for r in reports[-5:])
    assert reports[-1].metrics["dpo/loss/mean"] < 0.9 * math.log(2.0)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_resumed_learner_goes_on_bit_for_bit(tmp_path: Path, stored: Path, mode: str) -> None:
    """The reference too: it is the policy that the phase began with, not the one resumed from."""
    learner_config = {"mode": mode, "optimizer": {"learning_rate": 1e-3}, "ema": {"every": 1}}
    learner = opened(tmp_path, stored, learner=learner_config)
    learner.train_steps(0, 2)
    learner.save(tmp_path)
    expected = [report.metrics["dpo/loss/mean"] for report in learner.train_steps(2, 4)]
    resumed = opened(tmp_path, stored, learner=learner_config)
    resumed.load(tmp_path)
    found = [report.metrics["dpo/loss/mean"] for report in resumed.train_steps(2, 4)]
    assert found == expected
    assert digest_of(resumed) == digest_of(learner)


def test_every_visit_is_noised_anew_and_every_pair_alike(tmp_path: Path, stored: Path) -> None:
    learner = opened(tmp_path, stored, forward={"num_noise_levels": 2})
    first, later = learner.pair(0, 0), learner.pair(2, 0)
    assert first.clean.shape[0] == 4
    assert torch.equal(first.noise[0], first.noise[1])
    assert torch.equal(first.sigma[0::2], first.sigma[1::2])
    assert not torch.equal(first.noise[0], first.noise[2])
    assert not torch.equal(first.noise[0], later.noise[0])
    assert torch.equal(first.noise, learner.pair(0, 0).noise)


def test_micro_batches_change_rounding_at_most(tmp_path: Path, stored: Path) -> None:
    norms = [
        opened(
            tmp_path,
            stored,
            forward={"num_noise_levels": 2},
            learner={"micro_batch_rows": rows, "mode": "full"},
        ).train_steps(0, 1)[0].metrics["dpo/grad_norm/total"]
        for rows in (2, 64)
    ]  # fmt: skip
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def folder_of_pairs(folder: Path, lines: list[dict[str, str]], num_videos: int = 3) -> Path:
    folder.mkdir()
    for number in range(num_videos):
        video = torch.rand(9, 3, 16, 16, generator=torch.Generator().manual_seed(number))
        write_mp4(folder / f"{number}.mp4", video, 8)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / PAIRS_FILE).write_text(text)
    return folder


def line(chosen: int, rejected: int, text: str = "a ball") -> dict[str, str]:
    return {"text": text, "chosen": f"{chosen}.mp4", "rejected": f"{rejected}.mp4"}


def test_pairs_of_a_user_are_encoded_and_trained_on(tmp_path: Path) -> None:
    """A video in two pairs is one clip; under another text it is another."""
    folder = folder_of_pairs(tmp_path / "pairs", [line(0, 1), line(2, 1), line(1, 0, "a cube")])
    found = open_folder_pairs(folder, SHAPE)
    clips, pairs = found.clips, found.pairs
    assert (len(clips), pairs) == (5, ((0, 1), (2, 1), (3, 4)))
    learner = opened(tmp_path / "run", folder)
    assert learner.num_pairs == 3
    assert {learner.pair(0, row).prompt.text for row in range(3)} == {"a ball", "a cube"}
    report = learner.train_steps(0, 1)[0]
    assert report.metrics["dpo/loss/mean"] == pytest.approx(math.log(2.0), abs=1e-6)


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([{"text": "a ball", "chosen": "0.mp4"}], ":1: expected an object"),
        ([line(0, 1), line(0, 7)], ":2: no such file in the folder, got '7.mp4'"),
        ([line(1, 1)], ":1: expected two videos"),
        ([{"text": "a", "chosen": "../0.mp4", "rejected": "0.mp4"}], "no such file in the folder"),
        ([], "no pairs"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, lines: list[dict[str, str]], named: str) -> None:
    folder = folder_of_pairs(tmp_path / "pairs", lines)
    with pytest.raises(ValueError, match=named):
        open_folder_pairs(folder, SHAPE)


def test_settings_of_a_data_set_are_refused_for_a_folder(tmp_path: Path) -> None:
    folder = folder_of_pairs(tmp_path / "pairs", [line(0, 1)])
    for unread in ({"min_margin": 0.5}, {"objective": {"max_pairs": 2}}):
        with pytest.raises(ValueError, match="dpo.objective.max_pairs: are of a data set"):
            opened(tmp_path / "run", folder, **unread)
    with pytest.raises(ValueError, match=r"no pairs.jsonl in"):
        opened(tmp_path / "run", tmp_path / "nowhere")


def test_fewer_clips_than_ranks_are_said_of_the_section(tmp_path: Path) -> None:
    folder = folder_of_pairs(tmp_path / "pairs", [line(0, 1)])
    learner, settings = opened(tmp_path / "run", folder), settings_of(tmp_path / "other", folder)
    ranks = learner.trainee.engine.ranks
    ranks.world_size = 3
    expected = r"^dpo\.pairs: .* has 2 clips for 3 ranks.*lower dpo\.learner\.num_ranks$"
    with pytest.raises(ValueError, match=expected):
        open_preferences(
            settings.folder, settings.dpo, settings.trainee.model, learner.trainee.model, ranks
        )
