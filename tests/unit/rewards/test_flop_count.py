"""FLOPs of a scorer: those of a hand count, once for each shape, and never at a score's cost."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlvid.config.model import ModelConfig
from rlvid.config.rewards import ScorerConfig
from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.critics.guards import clip_guards
from rlvid.rewards.decoding import Frames
from rlvid.rewards.dispatch.pool_group import PoolGroup
from rlvid.rewards.dispatch.processes import DECODER
from rlvid.rewards.flop_count import FlopMeter, decoder_device, meter_for
from rlvid.rewards.scoring import (
    ItemResult,
    ScoreItem,
    ScorerWorker,
    open_scorer_worker,
    timed_score,
)
from tests.unit.rewards.played_pool import Pool, clips_of
from tests.unit.rewards.scorers import RankInGroup

PROMPT = Prompt(prompt_id="0123456789abcdef", text="a red ball falls to the left")
H200 = "NVIDIA H200"
OUT, KERNEL, HIDDEN = 4, 3, 8
"""Channels and side of the convolution, and width of the layer after it."""


class SmallNet:
    """A convolution over each frame, a layer over its channels; notes the batches it is given."""

    clip_spec = ClipSpec()

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._convolution = nn.Conv2d(3, OUT, KERNEL)
            self._layer = nn.Linear(OUT, HIDDEN)
        self.batches: list[int] = []

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        self.batches.append(len(videos))
        features = self._convolution(videos.flatten(0, 1)).mean(dim=(2, 3))
        widths: Tensor = self._layer(features.unflatten(0, videos.shape[:2]))
        return widths.mean(dim=(1, 2)).float()


class InBfloat16(SmallNet):
    """In inference mode torch's counter takes einsum apart, and its product is no more bfloat16."""

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            flat = videos.flatten(2)
            return torch.einsum("btn,bsn->b", flat, flat) + super().score(videos, prompts)


class Noisy(SmallNet):
    """Draws random numbers for every call."""

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return super().score(videos + torch.rand(videos.shape), prompts)


class Pairwise:
    """Group-wise: compares each clip with each, so its FLOPs grow with the square of the group."""

    clip_spec = ClipSpec()

    def score_group(self, videos: Tensor, prompt: Prompt) -> Tensor:
        flat = videos.flatten(1)
        return (flat @ flat.T).mean(dim=1)


class InNumpy:
    """Asks torch for nothing."""

    clip_spec = ClipSpec()

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        pixels = videos.permute(0, 1, 3, 4, 2).numpy()
        shares = [clip_guards((clip * 255.0).astype(np.uint8)) for clip in pixels]
        return torch.tensor([sum(share.values()) for share in shares], dtype=torch.float32)


class AnswersOnce(SmallNet):
    """Raises when it is asked twice about one clip; the second time only the counter asks."""

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        if self.batches:
            raise RuntimeError("asked before")
        return super().score(videos, prompts)


class RaisesOnBlack(SmallNet):
    """Fails on a batch that holds a black clip."""

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        if bool((videos.amax(dim=(1, 2, 3, 4)) == 0).any()):
            raise ValueError("black")
        return super().score(videos, prompts)


def clips(count: int, *, side: int = 8) -> Frames:
    """[count, 5, side, side, 3] of noise."""
    shape = (count, 5, side, side, 3)
    return np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)


def by_hand(*, num_clips: int, side: int = 8) -> int:
    """Two for each product of 5 frames: the convolution's at each position, and the layer's."""
    positions = (side - KERNEL + 1) ** 2
    return num_clips * 5 * (2 * positions * 3 * KERNEL**2 * OUT + 2 * OUT * HIDDEN)


def asked(
    scorer: object, frames: Frames, worker: ScorerWorker | None = None
) -> tuple[list[ItemResult], float | None]:
    """Return results and FLOPs of a batch of all these clips."""
    worker = worker or counting(scorer)
    items = [
        ScoreItem(item_id=(7, row), prompt=PROMPT, source=0, row=row) for row in range(len(frames))
    ]
    results, cost = timed_score(worker, items, [frames], 8.0)
    return results, cost.flops


def counting(scorer: object) -> ScorerWorker:
    return ScorerWorker(scorer, label="mine", meter=FlopMeter("mine"))  # type: ignore[arg-type]


def values(results: Sequence[ItemResult]) -> list[float | None]:
    return [result.value for result in results]


def test_counted_flops_are_those_of_a_hand_count() -> None:
    assert asked(SmallNet(), clips(3))[1] == by_hand(num_clips=3)
    assert asked(SmallNet(), clips(2, side=16))[1] == by_hand(num_clips=2, side=16)


def test_a_shape_is_counted_once_and_on_one_clip() -> None:
    """A batch of another length is no other shape; larger frames are."""
    scorer = SmallNet()
    worker = counting(scorer)
    first = asked(scorer, clips(3), worker)[1]
    again = asked(scorer, clips(5), worker)[1]
    assert scorer.batches == [3, 1, 5]
    assert (first, again) == (by_hand(num_clips=3), by_hand(num_clips=5))
    assert asked(scorer, clips(2, side=16), worker)[1] == by_hand(num_clips=2, side=16)
    assert scorer.batches == [3, 1, 5, 2, 1]


@pytest.mark.parametrize("kind", [SmallNet, InBfloat16, Noisy])
def test_scores_are_the_same_bits_with_and_without_counting(kind: type[SmallNet]) -> None:
    """Two batches: what the counter asked in between must leave no trace in the second."""
    found = []
    for meter in (None, FlopMeter("mine")):
        torch.manual_seed(3)
        worker = ScorerWorker(kind(), label="mine", meter=meter)
        found.append([values(asked(None, clips(4), worker)[0]) for _ in range(2)])
    assert found[0] == found[1]
    assert None not in found[0][0]


def test_a_group_is_counted_whole_by_its_size() -> None:
    """Of four clips 16 products of 960 numbers each, of two a quarter of them."""
    worker = counting(Pairwise())
    assert asked(None, clips(4), worker)[1] == 2 * 4 * 4 * 960
    assert asked(None, clips(2), worker)[1] == 2 * 2 * 2 * 960


def test_a_scorer_that_asks_torch_for_no_product_has_no_figure() -> None:
    """0 over the peak would read as a device that idles."""
    for scorer in (InNumpy(), RankInGroup()):
        results, flops = asked(scorer, clips(3))
        assert None not in values(results)
        assert flops is None


def test_a_count_that_fails_costs_no_score_and_is_not_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scorer = AnswersOnce()
    worker = counting(scorer)
    with caplog.at_level(logging.WARNING):
        results, flops = asked(scorer, clips(3), worker)
    assert None not in values(results)
    assert flops is None
    assert "mine: no FLOPs of clips [1, 5, 8, 8, 3]: asked before" in caplog.text
    scorer.batches.clear()
    assert asked(scorer, clips(3), worker)[1] is None
    assert scorer.batches == [3]


def test_a_call_that_took_long_is_not_followed_by_a_count() -> None:
    """Its deadline holds for both: a replica that counts too long would be replaced, and again."""
    scorer = SmallNet()
    worker = ScorerWorker(scorer, label="mine", meter=FlopMeter("mine", longest_s=1.0))
    [item] = [ScoreItem(item_id=(7, 0), prompt=PROMPT, source=0, row=0)]
    assert worker.flops([item], [clips(1)], took_s=1.5) is None
    assert scorer.batches == []
    assert worker.flops([item], [clips(1)], took_s=0.5) == by_hand(num_clips=1)
    assert worker.flops([item], [clips(1)], took_s=1.5) == by_hand(num_clips=1)
    assert scorer.batches == [1]


def test_clips_that_failed_are_no_work() -> None:
    frames = clips(3)
    frames[1] = 0
    results, flops = asked(RaisesOnBlack(), frames)
    assert [result.is_failure for result in results] == [False, True, False]
    assert flops == by_hand(num_clips=2)
    assert asked(RaisesOnBlack(), frames[1:2])[1] == 0.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_nothing_is_counted_where_no_peak_is_known() -> None:
    """A CPU's scorer is not asked once more for a figure that nobody could show."""
    assert meter_for("cpu", "mine", deadline_s=9.0) is None
    assert meter_for("cuda", "mine", deadline_s=9.0) is None
    assert decoder_device(ModelConfig()) == decoder_device(None) == ""
    config = ScorerConfig(use="tests.unit.rewards.test_flop_count:SmallNet")
    worker = open_scorer_worker(config, 0, counts_flops=True)
    assert worker.device_name == ""
    assert asked(None, clips(2), worker)[1] is None
    assert worker._scorer.batches == [2]  # type: ignore[union-attr]


def test_a_batch_of_several_groups_shares_its_flops_among_them() -> None:
    """While the replica has the first group, a clip and three others fill its next batch."""
    pool = Pool([{"use": "a:X", "name": "x", "batch_size": 4}])
    for ticket, size in enumerate((1, 1, 3), start=1):
        pool.submit(ticket, size)
    alone, shared = pool.batches("x")
    assert [item.item_id[0] for item in shared.items] == [2, 3, 3, 3]
    pool.answer(alone, flops=None)
    pool.answer(shared, flops=100.0)
    found = [dict(pool.done[ticket].flops) for ticket in (1, 2, 3)]
    assert found == [{}, {"x": 25.0}, {"x": 75.0}]


def test_scores_that_were_known_took_no_flops() -> None:
    pool = Pool([{"use": "a:X", "name": "x"}])
    for ticket in (1, 2):
        group = PoolGroup(ticket, payload=None, promised=None, labels=("x",))
        group.clips_are(clips_of(1, 2), "frames", pool.now)
        pool.dispatcher.submit(group, pool.now)
        pool.poll()
        for call in pool.batches("x"):
            pool.answer(call, flops=100.0)
    assert [pool.done[ticket].flops for ticket in (1, 2)] == [{"x": 100.0}, {"x": 0.0}]


def test_the_pool_says_the_peak_of_devices_it_knows() -> None:
    """Two replicas of a scorer and the decoder, all on the one kind."""
    scorers = [{"use": "a:X", "name": "x", "num_replicas": 2}]
    for device, peak in ((H200, 989.5), ("NVIDIA H200 MIG 1g.18gb", None), ("", None)):
        pool = Pool(scorers, device=device)
        assert pool.dispatcher.live()["x"].get("peak_tflops") == (peak and 2 * peak)
        assert pool.dispatcher.live()[DECODER] == ({} if peak is None else {"peak_tflops": peak})
        row = pool.metrics.metrics(pool.dispatcher.live(), of_step=True)
        assert row.get("rewards/x/peak_tflops") == (peak and 2 * peak)
        assert row.get("reward_pool/devices/peak_tflops") == peak


def test_a_scorers_seconds_of_work_are_those_of_its_calls() -> None:
    pool = Pool([{"use": "a:X", "name": "x", "batch_size": 1}])
    pool.submit(1, 3)
    assert "rewards/x/busy_s" not in pool.metrics.metrics(pool.dispatcher.live(), of_step=True)
    pool.answer_all("x")
    row = pool.metrics.metrics(pool.dispatcher.live(), of_step=True)
    assert row["rewards/x/busy_s"] == pytest.approx(3 * 0.1)
