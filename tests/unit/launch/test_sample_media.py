"""`rlvid sample --first-frame` and `--control`: a clip that begins with one, or follows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from rlvid.data.video_files import read_mp4, write_mp4
from rlvid.launch.cli import app
from rlvid.models.student import StudentSampling
from rlvid.models.tiny_families.wan import tiny_ti2v, tiny_vace

TEXT = "a red ball"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny_ti2v().save(str(folder))
    Image.effect_noise((32, 32), 80.0).convert("RGB").save(folder / "frame.png")
    return folder


def sampled(folder: Path, out: Path, *options: str, use: str = "wan_ti2v") -> torch.Tensor:
    arguments = ["sample", TEXT, "--model", str(folder), "--use", use, "--steps", "2"]
    answer = CliRunner().invoke(
        app, [*arguments, "--out", str(out), *options], catch_exceptions=False
    )
    assert answer.exit_code == 0
    return read_mp4(out)[0]


def test_picture_changes_the_clip(folder: Path, tmp_path: Path) -> None:
    frame = ("--first-frame", str(folder / "frame.png"))
    without, given = (
        sampled(folder, tmp_path / "a.mp4"),
        sampled(folder, tmp_path / "b.mp4", *frame),
    )
    assert given.shape == without.shape == (17, 3, 32, 32)
    assert (given[0] - without[0]).abs().max() > 0.05


def test_control_clip_changes_the_clip(tmp_path: Path) -> None:
    tiny_vace().save(str(tmp_path / "vace"))
    generator = torch.Generator().manual_seed(0)
    write_mp4(tmp_path / "control.mp4", torch.rand(17, 3, 32, 32, generator=generator), 8)
    without, given = (
        sampled(tmp_path / "vace", tmp_path / f"{number}.mp4", *options, use="wan_vace")
        for number, options in enumerate([(), ("--control", str(tmp_path / "control.mp4"))])
    )
    assert given.shape == without.shape == (17, 3, 32, 32)
    assert not torch.equal(given, without)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--first-frame", "nowhere.png"], r"sample: media\.first_frame: no such file: .*nowhere"),
        (["--last-frame", "frame.png"], r"needs \[\] and takes \['first_frame'\]"),
    ],
)
def test_picture_that_cannot_be_taken_is_named(
    options: list[str], message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=message):
        sampled(folder, tmp_path / "a.mp4", *options)


def test_family_without_a_folder_is_refused() -> None:
    with pytest.raises(ValueError, match="--use names the family of --model"):
        CliRunner().invoke(app, ["sample", TEXT, "--use", "wan_i2v"], catch_exceptions=False)


def test_student_takes_no_picture(folder: Path, tmp_path: Path) -> None:
    StudentSampling(sigmas=(1.0,)).save(tmp_path)
    arguments = ["sample", TEXT, "--model", str(tmp_path), "--first-frame", str(folder / "x.png")]
    with pytest.raises(ValueError, match="a distilled student, which is told a text alone"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
