"""Clips as they are stored, and what makes two scores the same score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rlvid.config.rewards import ScorerConfig
from rlvid.data.video_files import write_mp4
from rlvid.records import Prompt
from rlvid.rewards.base import Endpoint
from rlvid.rewards.decoding import DecodeWorker, as_tensor, clip_digest
from rlvid.rewards.dispatch.cache import ScoreCache, score_key, scorer_version, served_version
from tests.unit.rewards.scorers import Brightness, group, latents_as_video

PROMPT = Prompt(prompt_id="0123456789abcdef", text="a red ball falls")


def test_a_group_becomes_bytes_as_a_person_would_see_them() -> None:
    sampled = group(group_size=2, latent_shape=(3, 5, 16, 16))
    frames, info = DecodeWorker(latents_as_video, fps=8).decode(sampled)
    latents = torch.stack([rollout.latents for rollout in sampled.rollouts])
    expected = (latents_as_video(latents) * 255.0).round().to(torch.uint8)
    assert torch.equal(as_tensor(frames), expected)
    assert frames.shape == (2, 5, 16, 16, 3)
    assert frames.dtype == np.uint8
    assert (info.num_frames, info.height, info.width, info.fps) == (5, 16, 16, 8)
    assert info.digests == tuple(clip_digest(clip) for clip in frames)
    assert {len(values) for values in info.guards.values()} == {2}


def test_the_decoder_sees_a_group_once() -> None:
    decoded: list[Tensor] = []

    def decode(latents: Tensor) -> Tensor:
        decoded.append(latents)
        return latents_as_video(latents)

    DecodeWorker(decode, fps=8).decode(group(latent_shape=(3, 5, 16, 16)))
    assert [len(latents) for latents in decoded] == [8]


def test_digest_tells_bytes_and_shape_apart() -> None:
    clip = np.zeros((4, 2, 6, 3), dtype=np.uint8)
    other = clip.copy()
    other[3, 1, 5, 2] = 1
    digests = {clip_digest(c) for c in (clip, other, clip.reshape(4, 6, 2, 3))}
    assert len(digests) == 3
    assert clip_digest(clip) == clip_digest(clip.copy())


def test_files_of_one_group_must_be_of_one_kind(tmp_path: Path) -> None:
    files = []
    for height in (16, 32):
        path = tmp_path / f"{height}.mp4"
        write_mp4(path, torch.full((5, 3, height, 16), 0.5), fps=8)
        files.append(path.read_bytes())
    worker = DecodeWorker(None, fps=0.0)
    frames, info = worker.decode_files(files[:1] * 2, PROMPT, "g")
    assert frames.shape == (2, 5, 16, 16, 3)
    assert info.fps == 8.0
    with pytest.raises(ValueError, match="group g: expected clips of one size and frame rate"):
        worker.decode_files(files, PROMPT, "g")


def test_files_of_one_group_share_a_budget_of_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand small files may unpack to more memory than any one of them is allowed."""
    write_mp4(tmp_path / "a.mp4", torch.full((5, 3, 16, 16), 0.5), fps=8)
    files = [(tmp_path / "a.mp4").read_bytes()] * 3
    monkeypatch.setattr("rlvid.rewards.decoding.MAX_GROUP_PIXELS", 2 * 5 * 16 * 16)
    worker = DecodeWorker(None, fps=0.0)
    assert len(worker.decode_files(files[:2], PROMPT, "g")[0]) == 2
    with pytest.raises(ValueError, match="too large"):
        worker.decode_files(files, PROMPT, "g")


def test_latents_without_a_model_are_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="has no model to decode it"):
        DecodeWorker(None, fps=0.0).decode(group())


def test_cache_forgets_what_was_used_longest_ago() -> None:
    cache = ScoreCache(2)
    cache.put("a", 1.0)
    cache.put("b", 2.0)
    assert cache.get("a") == 1.0
    cache.put("c", 3.0)
    assert [cache.get(key) for key in "abc"] == [1.0, None, 3.0]


def test_cache_of_no_entries_keeps_nothing() -> None:
    cache = ScoreCache(0)
    cache.put("a", 1.0)
    assert cache.get("a") is None


@pytest.mark.parametrize(
    "prompt",
    [
        replace(PROMPT, text="a blue ball falls"),
        replace(PROMPT, enhanced_text="a shiny red ball falls"),
        replace(PROMPT, facts={"colour": "red"}),
    ],
)
def test_whatever_a_scorer_may_read_of_the_prompt_is_in_the_key(prompt: Prompt) -> None:
    assert score_key("v", prompt, ["d"]) != score_key("v", PROMPT, ["d"])


def test_settings_and_declared_version_move_the_scorer_version() -> None:
    class Declares(Brightness):
        version = "weights 2"

    config = ScorerConfig(use="b", config={"target": 0.5})
    plain, declares = (kind(kind.Config()) for kind in (Brightness, Declares))
    versions = {
        scorer_version(config, plain),
        scorer_version(ScorerConfig(use="b", config={"target": 0.6}), plain),
        scorer_version(config, declares),
    }
    assert len(versions) == 3
    assert scorer_version(config, plain) in versions


def test_the_model_behind_a_server_is_part_of_the_version_and_its_address_is_not() -> None:
    """A restarted server has another port and gives the same scores."""

    def version(url: str, digest: str) -> str:
        return served_version("v", [Endpoint(url=url, model="judge", model_digest=digest)])

    assert version("http://a:1", "x") == version("http://a:2", "x")
    assert version("http://a:1", "x") != version("http://a:1", "y")
