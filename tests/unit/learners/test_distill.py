"""The stages of distillation on a tiny real model, in a gang of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlvid.config.distillation import StageName
from rlvid.learners.distill import DistillSettings, StageLearner, distill_settings
from rlvid.learners.distill_consistency import ConsistencyLearner
from rlvid.learners.distill_dmd import DmdLearner
from rlvid.learners.testing import tiny_recipe
from rlvid.learners.workers import open_learner
from rlvid.models.policy import Policy
from rlvid.models.student import StudentSampling
from rlvid.observability.metrics import check_names
from rlvid.testing import tiny_model
from rlvid.weights import digest_tensors

STAGES: tuple[StageName, ...] = ("few_step", "causal_teacher", "causal_init", "self_forcing")
DMD = {
    "num_steps": 30,
    "batch_size": 3,
    "optimizer": {"learning_rate": 1e-3},
    "fake_optimizer": {"learning_rate": 1e-3},
    "fake_updates_per_student": 2,
    "ema": {"decay": 0.5, "every": 1},
}
GAN = {**DMD, "gan": {"weight": 0.5, "num_clips": 6, "width": 16}}
REGRESSION = {"num_steps": 30, "batch_size": 4, "optimizer": {"learning_rate": 3e-3}}
CONSISTENCY = {
    **REGRESSION,
    "method": "consistency",
    "num_denoising_steps": 4,
    "consistency": {"num_clips": 8},
}
DISTILLATION: dict[str, Any] = {
    "student_steps": (1.0, 0.5),
    "causal": {"frames_per_block": 1},
    "few_step": DMD,
    "self_forcing": DMD,
    "causal_teacher": {**REGRESSION, "num_clips": 12},
    "causal_init": {**REGRESSION, "num_denoising_steps": 4},
    "monitor": {"num_prompts": 2},
    "teacher_denoising_steps": 3,
    "checkpoint": {"every": 2},
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_model(0).save(str(folder))
    return Policy(model_path=str(folder))


def _settings(stage: StageName, policy: Policy, folder: Path, **overrides: Any) -> DistillSettings:
    recipe = tiny_recipe(distillation={**DISTILLATION, **overrides})
    return distill_settings(recipe, stage, policy, policy, folder)


def _open(stage: StageName, policy: Policy, folder: Path, **overrides: Any) -> StageLearner:
    learner = open_learner(_settings(stage, policy, folder, **overrides))
    assert isinstance(learner, StageLearner)
    return learner


def _state(learner: StageLearner) -> list[str]:
    """Digests of everything that is trained."""
    trainees = [learner.trainee, *(getattr(learner, name, None) for name in ("_fake",))]
    digests = []
    for trainee in trainees:
        if trainee is not None:
            digests.append(digest_tensors(dict(trainee.engine.full_parameters())))
            if trainee.ema is not None:
                digests.append(digest_tensors(dict(trainee.ema.full_parameters())))
    if isinstance(learner, ConsistencyLearner):
        digests.append(digest_tensors(dict(learner.target.transformer.named_parameters())))
    return digests


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        ("few_step", {}),
        ("few_step", {"few_step": GAN}),
        ("causal_teacher", {}),
        ("causal_init", {}),
        ("causal_init", {"causal_init": CONSISTENCY}),
        ("self_forcing", {}),
    ],
    ids=["few_step", "gan", "causal_teacher", "ode", "consistency", "self_forcing"],
)
def test_resume_equals_the_uninterrupted_run(
    stage: StageName, options: dict[str, Any], pipeline: Policy, tmp_path: Path
) -> None:
    """Student, average, target, fake score and discriminator after 4 steps, and after 2 and 2 with
    a restart between."""
    whole = _open(stage, pipeline, tmp_path, **options)
    reports = whole.train_steps(0, 4)
    for report in reports:
        check_names(report.metrics)
    first = _open(stage, pipeline, tmp_path, **options)
    first.train_steps(0, 2)
    (tmp_path / "saved").mkdir()
    first.save(tmp_path / "saved")
    second = _open(stage, pipeline, tmp_path, **options)
    before = _state(second)
    second.load(tmp_path / "saved")
    resumed = second.train_steps(2, 4)
    assert _state(second) == _state(whole) != before
    for one, other in zip(resumed, reports[2:], strict=True):
        ours, theirs = dict(one.metrics), dict(other.metrics)
        assert ours.pop("distillation/clips/per_s") > 0.0 < theirs.pop("distillation/clips/per_s")
        assert ours == theirs


@pytest.mark.parametrize("stage", STAGES)
def test_policy_says_how_it_is_sampled(stage: StageName, pipeline: Policy, tmp_path: Path) -> None:
    learner = _open(stage, pipeline, tmp_path)
    learner.export(tmp_path / "policy")
    sampling = Policy(model_path=str(tmp_path / "policy")).sampling
    if stage == "causal_teacher":
        assert sampling is None
        return
    assert sampling == learner.settings.sampling
    assert sampling is not None
    assert sampling.sigmas == pytest.approx((1.0, 0.75))  # 0.5 at the tiny recipe's shift of 3
    assert (sampling.layout is None) == (stage == "few_step")
    assert pipeline.sampling is None
    if learner.trainee.ema is not None:
        assert StudentSampling.load(tmp_path / "policy_ema") == sampling


@pytest.mark.parametrize("stage", ["causal_teacher", "causal_init"])
def test_regressions_fall(stage: StageName, pipeline: Policy, tmp_path: Path) -> None:
    reports = _open(stage, pipeline, tmp_path).train_steps(0, 30)
    losses = [report.metrics["distillation/loss/mean"] for report in reports]
    assert sum(losses[-8:]) < 0.95 * sum(losses[:8])


@pytest.mark.parametrize("method", ["ode", "consistency"])
def test_paper_order_learns_from_the_few_step_student(
    method: str, pipeline: Policy, tmp_path: Path
) -> None:
    learner = _open(
        "causal_init",
        pipeline,
        tmp_path,
        stages=("few_step", "causal_init"),
        causal_init={**REGRESSION, "teacher": "bidirectional_student", "method": method},
    )
    losses = [r.metrics["distillation/loss/mean"] for r in learner.train_steps(0, 30)]
    assert sum(losses[-8:]) < 0.95 * sum(losses[:8])


def test_consistency_reaches_the_end_of_the_teachers_one_step(
    pipeline: Policy, tmp_path: Path
) -> None:
    """One level above 0, unguided: the answer to match is the teacher's own, so nothing is lost."""
    one = {**CONSISTENCY, "num_denoising_steps": 1, "guidance_scale": 1.0}
    learner = _open("causal_init", pipeline, tmp_path, causal_init=one, student_steps=(1.0,))
    first = learner.train_steps(0, 1)[0].metrics
    assert first["distillation/loss/mean"] < 1e-10


def test_target_follows_the_student_at_its_decay(pipeline: Policy, tmp_path: Path) -> None:
    half = {**CONSISTENCY, "consistency": {"num_clips": 8, "target_decay": 0.5}}
    learner = _open("causal_init", pipeline, tmp_path, causal_init=half)
    assert isinstance(learner, ConsistencyLearner)
    start = {name: value.clone() for name, value in learner.trainee.engine.full_parameters()}
    learner.train_steps(0, 1)
    held = dict(learner.target.transformer.named_parameters())
    for name, value in learner.trainee.engine.full_parameters():
        torch.testing.assert_close(held[name], (start[name] + value) / 2)


def test_discriminator_learns_and_moves_the_student(pipeline: Policy, tmp_path: Path) -> None:
    """With the scores equal (see below) the GAN term is all that the student gets at first."""
    gan = {
        **GAN,
        "real_guidance_scale": 1.0,
        "fake_optimizer": {"learning_rate": 1e-2},
        "sigma_range": (0.02, 0.3),  # more noise hides what there is to tell
    }
    learner = _open("few_step", pipeline, tmp_path, few_step=gan)
    rows = [report.metrics for report in learner.train_steps(0, 12)]
    assert rows[0]["distillation/dmd_gradient/mean"] == 0.0
    assert rows[0]["distillation/gan_gradient/mean"] > 0.0
    assert rows[0]["distillation/grad_norm/total"] > 0.0
    losses = [row["distillation/discriminator_loss/mean"] for row in rows]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


@pytest.mark.parametrize(
    ("stage", "place"),
    [
        ("causal_teacher", "causal_teacher"),
        ("causal_init", "causal_init.consistency"),
        ("few_step", "few_step.gan"),
        ("self_forcing", "self_forcing.gan"),
    ],
)
def test_missing_clips_are_named_by_their_section(
    stage: StageName, place: str, pipeline: Policy, tmp_path: Path
) -> None:
    here = {"clips": str(tmp_path)}
    options: dict[str, Any] = {
        "causal_teacher": {**REGRESSION, **here},
        "causal_init": {**CONSISTENCY, "consistency": here},
        "few_step": {**DMD, "gan": {"weight": 0.5, **here}},
    }
    options["self_forcing"] = options["few_step"]
    with pytest.raises(ValueError, match=rf"^distillation\.{place}\.clips: no captions\.jsonl"):
        _open(stage, pipeline, tmp_path, **{stage: options[stage]})


def test_layer_that_is_not_there_is_refused(pipeline: Policy, tmp_path: Path) -> None:
    far = {**GAN, "gan": {"weight": 0.5, "num_clips": 6, "block": 9}}
    with pytest.raises(ValueError, match=r"gan.block: expected 0 to \d+, a layer"):
        _open("few_step", pipeline, tmp_path, few_step=far)


@pytest.mark.parametrize(
    ("stage", "options"),
    [("few_step", {"few_step": GAN}), ("self_forcing", {})],
    ids=["few_step with gan", "self_forcing"],
)
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_update_does_not_depend_on_sharding_or_micro_batches(
    stage: StageName,
    options: dict[str, Any],
    zero_stage: int,
    pipeline: Policy,
    tmp_path: Path,
) -> None:
    """The student's roll-out calls the engine many times before one backward.

    The discriminator's real clips do not reach the layers behind the judged one. Two Adam steps of
    1e-3; rounding moves an element whose gradient is near 0 by a part of that.
    """
    plain = {"mode": "full", "zero_stage": 0}
    other = {"mode": "full", "zero_stage": zero_stage, "micro_batch_rows": 2}
    found = []
    for learner_config in (plain, other):
        learner = _open(stage, pipeline, tmp_path, learner=learner_config, **options)
        learner.train_steps(0, 3)
        found.append(dict(learner.trainee.engine.full_parameters()))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0.0, atol=1e-4)


def test_student_is_updated_once_in_five(pipeline: Policy, tmp_path: Path) -> None:
    """DMD2's two time scales; the first step updates both."""
    learner = _open("few_step", pipeline, tmp_path, few_step={**DMD, "fake_updates_per_student": 5})
    weights = []
    for step in range(6):
        learner.train_steps(step, step + 1)
        weights.append(_state(learner)[0])
    assert weights[0] == weights[1] == weights[4] != weights[5]


def test_a_student_that_is_the_teacher_has_no_gradient(pipeline: Policy, tmp_path: Path) -> None:
    """Real and fake score agree at the start: the teacher, unguided, is its own fake score."""
    learner = _open("few_step", pipeline, tmp_path, few_step={**DMD, "real_guidance_scale": 1.0})
    first = learner.train_steps(0, 1)[0].metrics
    assert first["distillation/dmd_gradient/mean"] == 0.0
    assert learner.train_steps(1, 3)[1].metrics["distillation/dmd_gradient/mean"] > 0.0


def test_fading_motion_is_told_and_the_best_is_kept(pipeline: Policy, tmp_path: Path) -> None:
    """What the phase ends a stage for; a resume must judge by the same best."""
    learner = _open("few_step", pipeline, tmp_path)
    assert isinstance(learner, DmdLearner)
    first = learner.train_steps(0, 2)[1].metrics
    assert first["distillation/motion/is_faded"] == 0.0
    assert learner.monitor.best == first["distillation/motion/mean"] > 0.0
    (tmp_path / "saved").mkdir()
    learner.monitor.best = 1.0
    learner.save(tmp_path / "saved")
    resumed = _open("few_step", pipeline, tmp_path)
    assert isinstance(resumed, DmdLearner)
    resumed.load(tmp_path / "saved")
    assert resumed.monitor.best == 1.0
    resumed.monitor.teacher_motion = 1.0
    assert resumed.train_steps(2, 4)[1].metrics["distillation/motion/is_faded"] == 1.0
