"""`check_reward` gives clips as declared, and one precise line for each broken promise."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, Endpoint, Serving
from rlvid.rewards.scoring import as_declared
from rlvid.testing import check_reward
from rlvid.testing.rewards import _as_declared


class Watches:
    """A good reward that keeps the shapes and values it was given."""

    def __init__(self, spec: Any = None, serving: Any = None) -> None:
        self.clip_spec = ClipSpec() if spec is None else spec
        if serving is not None:
            self.serving = serving
        self.seen: list[Tensor] = []

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        self.seen.append(videos)
        return videos.mean(dim=(1, 2, 3, 4))


class Served(Watches):
    """Asks a server: its score is the number of replicas it knows."""

    def connect(self, endpoints: Sequence[Endpoint]) -> None:
        self._bonus = float(len(endpoints))

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return super().score(videos, prompts) + self._bonus


class Raises(Watches):
    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        raise KeyError("speed")


class Draws(Watches):
    """Wrong: another score at every call."""

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.rand(len(videos))


class Double(Watches):
    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return super().score(videos, prompts).double()


class Paints(Watches):
    """Wrong: other scorers share these clips."""

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        result = super().score(videos, prompts)
        videos[:, 0] = 0.0
        return result


class ReadsItsPrompt:
    """A good group-wise reward whose scores depend on what the group was to show."""

    clip_spec = ClipSpec()

    def score_group(self, videos: Tensor, prompt: Prompt) -> Tensor:
        return videos.mean(dim=(1, 2, 3, 4)) + float(len(prompt.text))


class Ranks(ReadsItsPrompt):
    """Wrong: numbers its clips by their place."""

    def score_group(self, videos: Tensor, prompt: Prompt) -> Tensor:
        return torch.arange(len(videos), dtype=torch.float32)


def test_a_group_is_of_one_prompt() -> None:
    """As the pool gives it; the order of the clips is checked all the same."""
    check_reward(ReadsItsPrompt())
    with pytest.raises(AssertionError, match="Ranks: scores are not in order"):
        check_reward(Ranks())


def test_clips_are_as_the_reward_declares() -> None:
    """Size and length, one channel, and black and white where they should be."""
    spec = ClipSpec(
        fps=16, num_frames=9, height=16, width=24, colour="grey", value_range=(-1.0, 1.0)
    )
    reward = Watches(spec)
    check_reward(reward)
    assert reward.seen[0].shape == (8, 9, 1, 16, 24)
    assert -1.0 <= float(reward.seen[0].min()) < -0.5
    assert 0.5 < float(reward.seen[0].max()) <= 1.0


def test_clips_show_the_declared_frame_rate() -> None:
    """At twice the frame rate a falling ball has fallen less by the second frame."""
    slow, fast = Watches(ClipSpec(fps=4)), Watches(ClipSpec(fps=24))
    check_reward(slow)
    check_reward(fast)
    moved = [
        float((one.seen[0][::2, 1] - one.seen[0][::2, 0]).abs().mean()) for one in (slow, fast)
    ]
    assert moved[0] > 1.5 * moved[1]


def test_clips_are_as_long_as_the_reward_needs() -> None:
    reward = Watches(ClipSpec(min_frames=33))
    check_reward(reward)
    assert reward.seen[0].shape[1] == 33


def test_batches_are_no_larger_than_declared() -> None:
    reward = Watches(serving=Serving(batch_size=3))
    check_reward(reward)
    assert max(len(clips) for clips in reward.seen) == 3


def test_clips_are_those_of_the_pool() -> None:
    """What passes the check must see the same pixels in a run."""
    spec = ClipSpec(colour="grey", value_range=(-1.0, 1.0))
    frames = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8)
    videos = frames.permute(0, 1, 4, 2, 3).float() / 255.0
    ours, theirs = _as_declared(videos, spec), as_declared(frames.numpy(), spec)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_reward_that_asks_a_server_is_given_one() -> None:
    endpoint = Endpoint(url="http://127.0.0.1:1", model="m", model_digest="d")
    check_reward(Served(), endpoints=[endpoint, endpoint])
    with pytest.raises(AssertionError, match="asks a model server; give check_reward endpoints"):
        check_reward(Served())
    with pytest.raises(AssertionError, match=r"has no connect\(\)"):
        check_reward(Watches(), endpoints=[endpoint])


SERVING = {
    "batch_size": 8, "max_wait_s": 0.0, "device": "cpu", "num_replicas": 1, "max_replicas": None,
    "deadline_s": 9.0, "num_cpus": 1.0, "num_gpus": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("reward", "complaint"),
    [
        (Watches({"fps": 8}), r"^Watches.clip_spec: expected a ClipSpec, got dict$"),
        (Watches(ClipSpec(fps=0)), r"clip_spec.fps: expected a whole number of at least 1"),
        (Watches(ClipSpec(height=32.0)), r"clip_spec.height: .* got 32.0"),  # type: ignore[arg-type]
        (Watches(ClipSpec(num_frames=9, min_frames=17)), "no clip has num_frames 9 and min_frames"),
        (Watches(ClipSpec(colour="gray")), "expected 'rgb' or 'grey', got 'gray'"),  # type: ignore[arg-type]
        (Watches(ClipSpec(value_range=(1.0, 1.0))), r"value_range: expected \(black, white\)"),
        (Watches(ClipSpec(value_range=255)), "value_range: .*got 255"),  # type: ignore[arg-type]
        (Watches(serving={"batch_size": 1}), r"serving: expected a Serving, got dict"),
        (Watches(serving=Serving(batch_size=0)), "serving.batch_size: .* got 0"),
        (Watches(serving=Serving(deadline_s=0.0)), "deadline_s: .*not negative and not 0, got 0.0"),
        (Watches(serving=Serving(num_replicas=3, max_replicas=2)), "at least num_replicas 3"),
        (Watches(serving=Serving(device="tpu")), "expected 'cpu' or 'cuda', got 'tpu'"),
        (Watches(serving=SimpleNamespace(**{**SERVING, "num_gpus": -1})), "num_gpus: .* got -1"),
        (Raises(), r"^Raises: score\(\) raised KeyError: 'speed' on clips \(8, 17, 3, 32, 32\)$"),
        (Draws(), "another call, another score"),
        (Double(), "expected float32, got torch.float64"),
        (Paints(), "changed the videos"),
    ],
)
def test_a_broken_promise_is_one_line(reward: Any, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint) as caught:
        check_reward(reward)
    assert "\n" not in str(caught.value)


def test_a_size_the_reward_does_not_take_is_refused() -> None:
    with pytest.raises(AssertionError, match="given num_frames 9, but clip_spec takes only 17"):
        check_reward(Watches(ClipSpec(num_frames=17)), num_frames=9)
    with pytest.raises(AssertionError, match="given num_frames 9, but clip_spec takes no less"):
        check_reward(Watches(ClipSpec(min_frames=17)), num_frames=9)
