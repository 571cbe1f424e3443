"""Clips as bytes for people: H.264 for the report, animated PNG for TensorBoard, frame strips.

Letters: T frames, H W pixels. Small clips are enlarged by whole pixels, so that what is seen is
what the model drew. Heavy imports (PyAV, Pillow) are local.
"""

from __future__ import annotations

import base64
import io
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]


def to_pixels(clip: Tensor, *, min_side: int = 1) -> Pixels:
    """[T, 3, H, W] float in [0, 1] -> [T, H', W', 3] uint8, enlarged until min(H', W') >= min_side.

    Raises:
        ValueError: not a clip of RGB frames.
    """
    if clip.ndim != 4 or clip.shape[1] != 3:
        raise ValueError(f"clip: expected shape [T, 3, H, W], got {list(clip.shape)}")
    pixels = (clip.detach().float().clamp(0, 1) * 255).round().permute(0, 2, 3, 1)
    array: Pixels = pixels.cpu().numpy().astype(np.uint8)
    factor = -(-min_side // min(array.shape[1:3]))
    return array.repeat(factor, axis=1).repeat(factor, axis=2) if factor > 1 else array


def shrunk(clip: Tensor, most_px: int) -> Tensor:
    """Return the clip with its shorter side at most `most_px`, for a page that must stay small.

    Args:
        clip: [T, 3, H, W] float.
    """
    from torch.nn.functional import interpolate

    height, width = int(clip.shape[2]), int(clip.shape[3])
    factor = most_px / min(height, width)
    if factor >= 1.0:
        return clip
    return interpolate(clip, size=(round(height * factor), round(width * factor)), mode="area")


def encode_mp4(clip: Tensor, fps: int, *, min_side: int = 160) -> bytes:
    """Return the clip as H.264 in MP4, which browsers play.

    Args:
        clip: [T, 3, H, W] in [0, 1].
    """
    import av

    pixels = to_pixels(clip, min_side=min_side)
    even = pixels[:, : pixels.shape[1] // 2 * 2, : pixels.shape[2] // 2 * 2]  # yuv420p halves both
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "16"})
        stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
        stream.thread_count = 1
        for frame in even:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def encode_animated_png(clip: Tensor, fps: int, *, min_side: int = 128) -> bytes:
    """Return the clip as a lossless animated PNG, which image dashboards and browsers play."""
    from PIL import Image

    frames = [Image.fromarray(frame) for frame in to_pixels(clip, min_side=min_side)]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format="PNG",
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / fps),
        loop=0,
    )
    return buffer.getvalue()


def encode_strip(clip: Tensor, *, num_frames: int = 6, min_side: int = 64) -> bytes:
    """Return `num_frames` frames, evenly spaced from first to last, side by side as a PNG."""
    from PIL import Image

    pixels = to_pixels(clip, min_side=min_side)
    picked = np.linspace(0, len(pixels) - 1, min(num_frames, len(pixels))).round().astype(int)
    gap = np.full((pixels.shape[1], 2, 3), 255, dtype=np.uint8)
    parts = [part for place in picked for part in (gap, pixels[place])][1:]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(parts, axis=1)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_url(kind: str, content: bytes) -> str:
    """Return the bytes as a URL that carries them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
