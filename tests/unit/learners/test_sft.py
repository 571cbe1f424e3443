"""One rank of supervised fine-tuning, on a tiny real model and the tiny world."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch

from rlvid.learners.sft import SftLearner, sft_settings
from rlvid.learners.testing import tiny_recipe
from rlvid.models.policy import Policy
from rlvid.observability.metrics import check_names
from rlvid.testing import tiny_model
from rlvid.weights import digest_tensors

SFT = {
    "num_steps": 60,
    "batch_size": 8,
    "num_clips": 12,
    "learner": {
        "mode": "full",
        "zero_stage": 2,
        "optimizer": {"learning_rate": 3e-3},
        "ema": {"decay": 0.5, "every": 2},
    },
}


def _open(folder: Path, **overrides: Any) -> SftLearner:
    recipe = tiny_recipe(sft={**SFT, **overrides})
    settings = sft_settings(recipe, Policy(model_path="tiny"), folder)
    return SftLearner(settings, tiny_model(0))


def _digest(learner: SftLearner) -> str:
    return digest_tensors(dict(learner.trainee.engine.full_parameters()))


def test_loss_falls(tmp_path: Path) -> None:
    """The first phase of every run from nothing; the noise level of a batch makes it jumpy."""
    reports = _open(tmp_path).train_steps(0, 60)
    losses = [report.metrics["sft/loss/mean"] for report in reports]
    assert statistics.fmean(losses[-15:]) < 0.95 * statistics.fmean(losses[:15])
    check_names(reports[0].metrics)


def test_batch_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    """Then a resume needs no cursor, and any number of ranks trains on the same batch."""
    learner = _open(tmp_path)
    first = learner.batch(5)
    learner.batch(1)
    again = learner.batch(5)
    assert first.indices == again.indices
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.sigma, again.sigma)
    assert not torch.equal(first.noise, learner.batch(6).noise)


def test_each_pass_shows_every_clip_once(tmp_path: Path) -> None:
    """12 clips in batches of 8: three steps are two passes, with a batch across the border."""
    learner = _open(tmp_path)
    seen = [index for step in range(3) for index in learner.batch(step).indices]
    assert sorted(seen[:12]) == list(range(12))
    assert sorted(seen[12:]) == list(range(12))


def test_prompts_are_dropped_at_the_stated_share(tmp_path: Path) -> None:
    """Guidance needs the empty prompt; binomial with n = 800, so 0.5 within four deviations."""
    learner = _open(tmp_path, prompt_dropout=0.5)
    drops = torch.cat([learner.batch(step).drops_prompt for step in range(100)])
    assert abs(float(drops.float().mean()) - 0.5) < 0.07


def test_resume_equals_the_uninterrupted_run(tmp_path: Path) -> None:
    """Weights after 4 steps, and after 2 and 2 with a restart between."""
    whole = _open(tmp_path)
    whole.train_steps(0, 4)
    first = _open(tmp_path)
    first.train_steps(0, 2)
    (tmp_path / "saved").mkdir()
    first.save(tmp_path / "saved")
    second = _open(tmp_path)
    second.load(tmp_path / "saved")
    second.train_steps(2, 4)
    assert _digest(second) == _digest(whole)
    assert whole.trainee.ema is not None
    assert second.trainee.ema is not None
    assert digest_tensors(dict(second.trainee.ema.full_parameters())) == digest_tensors(
        dict(whole.trainee.ema.full_parameters())
    )


def test_clips_are_encoded_once(tmp_path: Path) -> None:
    """A resumed phase finds its latents; another clip set does not."""
    _open(tmp_path)
    file = next(tmp_path.glob("latents-*.safetensors"))
    written = file.stat().st_mtime_ns
    _open(tmp_path)
    assert file.stat().st_mtime_ns == written
    _open(tmp_path, clip_seed=7)
    assert file.stat().st_mtime_ns != written


def test_initialise_starts_from_random_weights_of_the_seed(tmp_path: Path) -> None:
    base = _digest(_open(tmp_path))
    fresh = [_digest(_open(tmp_path, initialise=True)) for _ in range(2)]
    assert fresh[0] == fresh[1] != base
