"""The report is one file that needs nothing else and shows what it was given."""

from __future__ import annotations

import base64
import io
import re

import av
import pytest
import torch

from rlvid.observability.charts import Series, line_chart, ticks
from rlvid.observability.clips import encode_mp4, shrunk, to_pixels
from rlvid.observability.report import (
    ClipPair,
    EvaluationRow,
    ReportData,
    build_report,
    learner_charts,
)
from rlvid.observability.trace import RoleTotal


def rows() -> list[dict[str, object]]:
    return [
        {
            "phase": "grpo",
            "step": step,
            "metrics": {"rollout/reward/mean": 0.1 * step, "heldout/reward/mean": 0.2 * step},
        }
        for step in range(4)
    ]


@pytest.fixture(scope="module")
def page() -> str:
    clip = torch.linspace(0, 1, 9)[:, None, None, None].expand(9, 3, 32, 32)
    row = EvaluationRow(
        scorer="reward", trained_on=True, before=0.4, after=0.7, mean_difference=0.3, low=0.2,
        high=0.4, win_rate=0.9, num_pairs=64,
    )  # fmt: skip
    return build_report(
        ReportData(
            title="a run",
            summary=["it got better"],
            rows=rows(),
            evaluation=[row],
            clips=[ClipPair(prompt="a <red> ball", before=clip, after=clip.flip(0))],
            timings=[RoleTotal(role="learner", work="learn", seconds=3.0, count=2)],
            recipe="name: a_run\n",
            versions={"torch": "2.13.0"},
        )
    )


def test_page_loads_nothing_from_elsewhere(page: str) -> None:
    """It is mailed around and opened behind firewalls."""
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s)>]+)""", page)
    assert links != []
    assert [link for link in links if not link.startswith("data:")] == []


@pytest.mark.parametrize(
    "names",
    [
        ("learner/loss/mean", "learner/policy_loss/mean"),
        ("learner/old_distance/mean", "learner/reference_distance/mean"),
        ("learner/implicit_margin/mean", "learner/pairs_right/frac"),
        ("learner/differentiable_reward/mean", "learner/data_loss/mean"),
        ("learner/anchor_kl/mean", "learner/pulled/frac"),
        ("dpo/loss/mean", "dpo/implicit_margin/mean", "dpo/pairs_right/frac"),
    ],
)
def test_every_engine_has_charts_of_what_it_measures(names: tuple[str, ...]) -> None:
    """nft, awm, dpo, refl, a selective or dual KL, and dpo on stored pairs."""
    measured = [
        {"phase": "x", "step": step, "metrics": dict.fromkeys(names, 0.1 * step)}
        for step in range(3)
    ]
    charts = learner_charts(measured)
    assert len(charts) == len(names)
    assert all(any(name in chart for chart in charts) for name in names)


def test_text_of_a_prompt_is_escaped(page: str) -> None:
    """A prompt comes from a file somebody else wrote."""
    assert "a &lt;red&gt; ball" in page
    assert "<red>" not in page


def test_embedded_clip_plays_all_its_frames(page: str) -> None:
    encoded = re.findall(r"data:video/mp4;base64,([A-Za-z0-9+/=]+)", page)
    assert len(encoded) == 2
    with av.open(io.BytesIO(base64.b64decode(encoded[0]))) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 9
    assert frames[0].mean() < 8  # black to white, through yuv420p and lossy coding
    assert frames[-1].mean() > 247


def test_interval_and_verdict_are_shown(page: str) -> None:
    assert "[+0.200, +0.400]" in page
    assert 'class="better"' in page


def test_report_of_a_run_without_evaluation_still_builds() -> None:
    """A run of SFT alone has no pairs and no clips."""
    page = build_report(ReportData(title="t", summary=[], rows=[]))
    assert "Held-out evaluation" not in page


def test_chart_draws_held_out_beside_training() -> None:
    chart = line_chart(
        "r",
        [
            Series(label="training", points=[(0, 1.0), (1, 2.0)]),
            Series(label="held", points=[(0, 3)]),
        ],
    )
    assert chart.count('class="line') == 2


def test_chart_leaves_out_values_that_are_not_finite() -> None:
    chart = line_chart("r", [Series(label="r", points=[(0, 1.0), (1, float("nan")), (2, 2.0)])])
    assert "nan" not in chart
    assert chart.count("<circle") == 2


def test_ticks_are_round_numbers_inside_the_range() -> None:
    assert ticks(0.43, 0.82, 4) == [0.5, 0.6, 0.7, 0.8]


def test_small_clips_are_enlarged_by_whole_pixels() -> None:
    """Blurring would show what the model did not draw."""
    clip = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(1, 3, 2, 2)
    pixels = to_pixels(clip, min_side=4)
    assert pixels.shape == (1, 4, 4, 3)
    assert pixels[0, 0, :, 0].tolist() == [0, 0, 255, 255]


def test_large_clips_are_shrunk_to_their_shorter_side_and_small_ones_left() -> None:
    clip = torch.arange(4.0).view(1, 1, 1, 4).repeat_interleave(180, dim=3).expand(2, 3, 480, 720)
    small = shrunk(clip, 320)
    assert small.shape == (2, 3, 320, 480)
    assert small[0, 0, 0, ::120].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert shrunk(clip, 480) is clip


def test_odd_size_loses_one_row_instead_of_failing() -> None:
    assert encode_mp4(torch.zeros(2, 3, 161, 163), 8)[4:8] == b"ftyp"


def test_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected shape \[T, 3, H, W\], got \[3, 4, 4\]"):
        to_pixels(torch.zeros(3, 4, 4))
