"""Pictures and clips of prompts: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from rlvid.data.video_files import Mp4Writer, write_mp4
from rlvid.media import check_length, check_media, digest_media, read_media


def test_picture_of_the_clips_size_keeps_its_levels(tmp_path: Path) -> None:
    levels = torch.arange(16 * 24 * 3).remainder(256).byte().reshape(16, 24, 3)
    Image.fromarray(levels.numpy()).save(tmp_path / "a.png")
    pixels = read_media("first_frame", tmp_path / "a.png", num_frames=9, height=16, width=24)
    assert torch.equal(pixels, levels.permute(2, 0, 1).float().div(255.0))
    assert check_media("first_frame", tmp_path / "a.png") == (16, 24)


def test_other_picture_is_scaled_as_diffusers_scales_it(tmp_path: Path) -> None:
    """All of it is stretched: a crop of our own choice would be another picture."""
    from diffusers.video_processor import VideoProcessor

    image = Image.effect_noise((50, 30), 80.0).convert("RGB")
    image.save(tmp_path / "a.png")
    expected = VideoProcessor(vae_scale_factor=8).preprocess(image, height=16, width=32)[0]
    pixels = read_media("first_frame", tmp_path / "a.png", num_frames=9, height=16, width=32)
    torch.testing.assert_close(pixels * 2.0 - 1.0, expected, atol=1e-6, rtol=0.0)


def test_grey_transparent_and_turned_pictures_are_rgb_and_upright(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 128).save(tmp_path / "grey.png")
    Image.new("RGBA", (8, 8), (255, 0, 0, 255)).save(tmp_path / "alpha.png")
    turned = Image.new("RGB", (24, 16), "blue")
    exif = turned.getexif()
    exif[0x0112] = 6  # Orientation: the camera was turned by a quarter.
    turned.save(tmp_path / "turned.jpg", exif=exif)
    for name in ("grey.png", "alpha.png"):
        assert read_media("last_frame", tmp_path / name, num_frames=9, height=8, width=8).shape == (
            3,
            8,
            8,
        )
    assert check_media("first_frame", tmp_path / "turned.jpg") == (24, 16)


def test_clip_has_the_frames_of_the_video(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", torch.rand(5, 3, 16, 16), 8.0)
    clip = read_media("control", tmp_path / "a.mp4", num_frames=5, height=8, width=24)
    assert clip.shape == (5, 3, 8, 24)
    assert check_media("control", tmp_path / "a.mp4") == (16, 16)
    with pytest.raises(ValueError, match="has 5 frames: expected those of the video, 9"):
        read_media("control", tmp_path / "a.mp4", num_frames=9, height=16, width=16)


@pytest.mark.parametrize("is_live", [False, True])
def test_length_is_told_by_the_file_and_counted_where_it_is_silent(
    is_live: bool, tmp_path: Path
) -> None:
    """A live file is one in parts, whose header says 0."""
    with Mp4Writer(tmp_path / "a.mp4", 8, is_live=is_live) as writer:
        writer.write(torch.rand(5, 3, 16, 16))
    check_length("control", tmp_path / "a.mp4", 5)
    check_length("first_frame", tmp_path / "a.mp4", 9)
    with pytest.raises(ValueError, match="control: .*a.mp4 has 5 frames: expected .* video, 9"):
        check_length("control", tmp_path / "a.mp4", 9)
    (tmp_path / "b.mp4").write_bytes(b"no clip")
    with pytest.raises(ValueError, match="does not decode as a video"):
        check_length("control", tmp_path / "b.mp4", 5)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("frame", "a.png", b"", "frame: unknown name: expected one of first_frame, last_frame"),
        ("first_frame", "a.gif", b"GIF89a", r"expected a \.png or \.jpg or \.jpeg file"),
        ("first_frame", "a.png", None, "first_frame: no such file"),
        ("first_frame", "a.png", b"no picture", "does not decode as a picture"),
        ("first_frame", "a.png", b"GIF89a\x01\x00\x01\x00", "does not decode as a picture"),
        ("control", "a.mp4", b"no clip", "does not decode as a video"),
    ],
)
def test_what_is_no_picture_is_refused(
    name: str, file: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        check_media(name, tmp_path / file)


def test_cut_picture_is_refused(tmp_path: Path) -> None:
    """Its header is whole; PIL finds out when it decodes."""
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 80.0).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="does not decode as a picture"):
        check_media("first_frame", path)


def test_digest_is_of_the_bytes(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    one, same, other = (digest_media("first_frame", tmp_path / name) for name in "abc")
    assert one == same != other
