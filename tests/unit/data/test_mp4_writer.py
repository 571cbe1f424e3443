"""A file that takes its frames in parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlvid.data.video_files import Mp4Writer, read_mp4, write_mp4

CLIP = torch.rand(9, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_parts_are_the_clip(tmp_path: Path) -> None:
    """Byte for byte what `write_mp4` writes of the whole."""
    write_mp4(tmp_path / "whole.mp4", CLIP, 8)
    with Mp4Writer(tmp_path / "parts.mp4", 8) as writer:
        for part in CLIP.split([1, 4, 4]):
            writer.write(part)
    assert (tmp_path / "parts.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_a_live_file_plays_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "live.mp4"
    long = CLIP.repeat(6, 1, 1, 1)
    with Mp4Writer(path, 8, is_live=True) as writer:
        for part in long.split(9):
            writer.write(part)
        (tmp_path / "cut.mp4").write_bytes(path.read_bytes())
    assert 0 < len(read_mp4(tmp_path / "cut.mp4")[0]) < 54
    assert len(read_mp4(path)[0]) == 54


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    with Mp4Writer(tmp_path / "clip.mp4", 8) as writer:
        writer.write(CLIP)
        with pytest.raises(ValueError, match="frames of 8x16 after frames of 16x16"):
            writer.write(CLIP[:, :, :8])
