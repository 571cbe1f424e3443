"""What a run writes can be read back, and a resumed run leaves one row a step."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from rlvid.observability.recorder import Recorder, read_rows


def steps(folder: Path) -> list[tuple[str, int]]:
    return [(row["phase"], row["step"]) for row in read_rows(folder / "metrics.jsonl")]


def test_resume_drops_only_what_will_be_done_again(tmp_path: Path) -> None:
    """The killed run did 3 steps, its checkpoint is from step 1; the other phase is finished."""
    with Recorder(tmp_path, "sft") as recorder:
        recorder.write(5, {"sft/loss/mean": 1.0})
    with Recorder(tmp_path, "grpo") as recorder:
        for step in range(4):
            recorder.write(step, {"learner/loss/mean": 0.1})
    with Recorder(tmp_path, "grpo") as recorder:
        recorder.resume_after(1)
        recorder.write(2, {"learner/loss/mean": 0.2})
    assert steps(tmp_path) == [("sft", 5), ("grpo", 0), ("grpo", 1), ("grpo", 2)]
    assert read_rows(tmp_path / "metrics.jsonl")[-1]["metrics"] == {"learner/loss/mean": 0.2}


def test_phase_without_checkpoint_starts_over(tmp_path: Path) -> None:
    """Even its evaluation before the first step is done again."""
    with Recorder(tmp_path, "grpo") as recorder:
        recorder.write(0, {"heldout/reward/mean": 0.1})
        recorder.resume_after(None)
    assert steps(tmp_path) == []


def test_line_cut_by_a_crash_does_not_hurt_the_rows_after_it(tmp_path: Path) -> None:
    with Recorder(tmp_path, "grpo") as recorder:
        recorder.write(0, {"learner/loss/mean": 0.1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "grpo", "st')
    with Recorder(tmp_path, "grpo") as recorder:
        recorder.resume_after(0)
        recorder.write(1, {"learner/loss/mean": 0.1})
    assert steps(tmp_path) == [("grpo", 0), ("grpo", 1)]


def test_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    """Only a crash of the writer explains a bad last line; anything else is damage."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('oops\n{"phase": "grpo", "step": 0, "metrics": {}}\n')
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        read_rows(path)


def test_unknown_metric_writes_nothing(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder, pytest.raises(ValueError, match="not in the table"):
        recorder.write(0, {"nobody/knows/this": 1.0})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_tensorboard_shows_scalars_and_a_clip_that_moves(tmp_path: Path) -> None:
    """Read back with TensorBoard's own reader; the clip keeps its frames and its colours."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    clip = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with Recorder(tmp_path, "grpo") as recorder:
        recorder.write(3, {"learner/loss/mean": 0.5})
        recorder.write_video("heldout/clip", 3, clip, fps=8)
        recorder.write_image("heldout/frame", 3, clip[0])
    events = EventAccumulator(str(tmp_path / "tensorboard" / "grpo"))
    events.Reload()
    scalar = events.Scalars("learner/loss/mean")[0]
    assert (scalar.step, scalar.value) == (3, 0.5)
    shown = Image.open(io.BytesIO(events.Images("heldout/clip")[0].encoded_image_string))
    assert getattr(shown, "n_frames", 1) == 5
    shown.seek(4)
    corner = torch.tensor(shown.convert("RGB").getpixel((0, 0)), dtype=torch.float32) / 255
    assert torch.allclose(corner, clip[4, :, 0, 0], atol=0.51 / 255)  # rounding to 8 bits
    assert len(events.Images("heldout/frame")) == 1


def test_rows_are_json_lines_with_phase_and_time(tmp_path: Path) -> None:
    with Recorder(tmp_path, "grpo") as recorder:
        recorder.write(0, {"learner/loss/mean": 0.1})
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert set(row) == {"phase", "step", "time_s", "metrics"}


def test_resume_forgets_the_alarms_of_the_steps_it_does_again(tmp_path: Path) -> None:
    """They will be raised again, and the report must not show them twice."""
    with Recorder(tmp_path, "grpo") as recorder:
        recorder.write_alarm(3, "guard", "grid", "grid is 0.9")
        recorder.write_alarm(7, "judge_drift", "judge", "it fell")
        recorder.resume_after(5)
    rows = read_rows(tmp_path / "alarms.jsonl")
    assert [(row["step"], row["kind"], row["message"]) for row in rows] == [
        (3, "guard", "grid is 0.9")
    ]


def test_tensorboard_shows_texts(tmp_path: Path) -> None:
    """The correlation table is one; it is read back with TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Recorder(tmp_path, "grpo") as recorder:
        recorder.write_text("correlation", 4, "| pair | pearson |")
    events = EventAccumulator(str(tmp_path / "tensorboard" / "grpo"))
    events.Reload()
    [tag] = events.Tags()["tensors"]
    shown = events.Tensors(tag)[0]
    assert (tag, shown.step) == ("correlation/text_summary", 4)
    assert shown.tensor_proto.string_val[0] == b"| pair | pearson |"
