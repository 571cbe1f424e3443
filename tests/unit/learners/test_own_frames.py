"""Image-to-video models trained on clips and on pairs: they are told a picture, as they sample."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rlvid.algorithms.flow_matching import add_noise, flow_matching_loss
from rlvid.data.clips import clip_shape, open_clips
from rlvid.data.pairs import PAIRS_FILE
from rlvid.data.video_files import write_mp4
from rlvid.learners.data_loss import EncodedClips
from rlvid.learners.distill import distill_settings
from rlvid.learners.distill_dmd import DmdLearner
from rlvid.learners.dpo import DpoLearner, dpo_settings
from rlvid.learners.sft import SftLearner, sft_settings
from rlvid.learners.testing import tiny_recipe
from rlvid.models.policy import Policy
from rlvid.models.tiny_families.wan import tiny_flf2v, tiny_i2v, tiny_ti2v
from tests.unit.learners.clip_sets import dataset

MODEL = {"num_frames": 5, "height": 32, "width": 32}
FULL = {"mode": "full", "zero_stage": 0}
POLICY = Policy(model_path="tiny")


def sft_learner(build: Callable[[], Any], folder: Path, **sft: Any) -> SftLearner:
    section = {"num_steps": 4, "batch_size": 2, "num_clips": 3, "learner": FULL, **sft}
    recipe = tiny_recipe(model=MODEL, sft=section)
    return SftLearner(sft_settings(recipe, POLICY, folder), build())


@pytest.mark.parametrize(("build", "has_last"), [(tiny_i2v, False), (tiny_flf2v, True)])
def test_sft_tells_a_clip_its_own_frames(
    build: Callable[[], Any], has_last: bool, tmp_path: Path
) -> None:
    """The loss of a step is that of velocities which saw the clip's first frame, and its last."""
    learner = sft_learner(build, tmp_path, prompt_dropout=0.0)
    model: Any = build()
    config = learner.trainee.settings.model
    clips = open_clips("tiny_world", clip_shape(config), num_clips=3, clip_seed=0)
    batch, losses = learner.batch(0), []
    for row, index in enumerate(batch.indices):
        video, text = clips.clip(index)
        frames = {"first_frame": video[:1]} | ({"last_frame": video[-1:]} if has_last else {})
        told = model.encode_prompts([text]) | model.encode_media(frames, len(video))
        clean, sigma = model.encode(video[None]), batch.sigma[row : row + 1]
        noise = batch.noise[row : row + 1]
        with torch.no_grad():
            velocity = model.velocity(add_noise(clean, noise, sigma), sigma, told)
        losses.append(float(flow_matching_loss(velocity, clean, noise)))
    metrics = learner.train_steps(0, 1)[0].metrics
    assert metrics["sft/loss/mean"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert metrics["sft/grad_norm/total"] > 0.0


def test_frames_are_kept_for_those_who_need_them_alone(tmp_path: Path) -> None:
    """A model that may do without is trained on texts, as before; a resume encodes nothing."""
    for build, expected in ((tiny_ti2v, False), (tiny_i2v, True)):
        folder = tmp_path / build.__name__
        sft_learner(build, folder)
        written = next(folder.glob("latents-*")).stat().st_mtime_ns
        again = sft_learner(build, folder)
        assert (again._set.clips.frames(0) is not None) is expected
        assert next(folder.glob("latents-*")).stat().st_mtime_ns == written


def test_clips_of_the_data_loss_are_told_their_frames() -> None:
    model: Any = tiny_i2v()
    shape = clip_shape(tiny_recipe(model=MODEL).model)
    clips = open_clips("tiny_world", shape, num_clips=1, clip_seed=0)
    told = EncodedClips(clips, model).frames(0)
    expected = model.encode_media({"first_frame": clips.clip(0)[0][:1]}, 5)
    assert told is not None
    assert all(torch.equal(told[name], expected[name]) for name in expected)


def test_data_set_without_frames_is_refused(tmp_path: Path) -> None:
    stored = dataset(tmp_path / "set", [[0.1, 0.9], [0.5, 0.4]])
    with pytest.raises(ValueError, match=r"sft\.clips: a data set .*needs \['first_frame'\]"):
        sft_learner_of_set(tmp_path, stored)


def sft_learner_of_set(folder: Path, stored: Path) -> SftLearner:
    """The set's clips are of 9x16x16."""
    size = {"num_frames": 9, "height": 16, "width": 16}
    section = {"num_steps": 1, "batch_size": 1, "clips": str(stored), "learner": FULL}
    recipe = tiny_recipe(model=size, sft=section)
    return SftLearner(sft_settings(recipe, POLICY, folder), tiny_i2v())


def pairs_folder(folder: Path, **media: str) -> Path:
    folder.mkdir()
    for number in range(2):
        video = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(number))
        write_mp4(folder / f"{number}.mp4", video, 8)
    Image.new("RGB", (32, 32), (200, 40, 90)).save(folder / "first.png")
    line = {"text": "a ball", "chosen": "0.mp4", "rejected": "1.mp4"}
    (folder / PAIRS_FILE).write_text(json.dumps({**line, "media": media} if media else line))
    return folder


def dpo_learner(folder: Path, pairs: Path) -> DpoLearner:
    section = {"num_steps": 2, "batch_size": 1, "pairs": str(pairs), "learner": FULL}
    recipe = tiny_recipe(model=MODEL, dpo=section)
    return DpoLearner(dpo_settings(recipe, POLICY, folder), tiny_i2v())


def test_pairs_of_a_picture_are_trained_on(tmp_path: Path) -> None:
    """Both clips of a pair are told the picture of its line, not each its own first frame."""
    learner = dpo_learner(tmp_path, pairs_folder(tmp_path / "pairs", first_frame="first.png"))
    assert learner.pair(0, 0).prompt.media == {"first_frame": str(tmp_path / "pairs/first.png")}
    metrics = learner.train_steps(0, 1)[0].metrics
    assert metrics["dpo/loss/mean"] == pytest.approx(math.log(2.0), abs=1e-6)
    assert metrics["dpo/grad_norm/total"] > 0.0


def test_pairs_without_the_picture_they_need_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'a ball': media \[\]: .* needs \['first_frame'\]"):
        dpo_learner(tmp_path, pairs_folder(tmp_path / "pairs"))
    with pytest.raises(ValueError, match=r"pairs\.jsonl:1: media\.first_frame: no such file"):
        dpo_learner(tmp_path, pairs_folder(tmp_path / "other", first_frame="none.png"))


def test_few_step_student_is_distilled_with_its_picture(tmp_path: Path) -> None:
    """Student, fake score, teacher and the monitor's clips are all told the first frame."""
    model = tiny_i2v()
    model.save(str(tmp_path / "teacher"))
    Image.new("RGB", (32, 32), (200, 40, 90)).save(tmp_path / "first.png")
    line = {"text": "a ball", "media": {"first_frame": "first.png"}}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(line))
    recipe = tiny_recipe(
        model={**MODEL, "use": "wan_i2v", "path": str(tmp_path / "teacher")},
        prompts={"source": str(tmp_path / "prompts.jsonl"), "split": "all"},
        distillation={
            "stages": ["few_step"],
            "student_steps": [1.0, 0.5],
            "few_step": {"num_steps": 2, "batch_size": 1, "fake_updates_per_student": 1},
            "monitor": {"num_prompts": 1},
            "teacher_denoising_steps": 2,
        },
    )
    teacher = Policy(model_path=str(tmp_path / "teacher"))
    settings = distill_settings(recipe, "few_step", teacher, teacher, tmp_path)
    metrics = DmdLearner(settings).train_steps(0, 2)[-1].metrics
    assert metrics["distillation/grad_norm/total"] > 0.0
    assert metrics["distillation/motion/teacher"] > 0.0
