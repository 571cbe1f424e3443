"""VMAF, SSIM and PSNR of a clip against a reference clip, by libvmaf in ffmpeg."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.specialists.ffmpeg import open_ffmpeg, raw_input, run, to_rgb
from rlvid.rewards.specialists.needs import need_folder

MIN_HEIGHT = 256
"""Smaller clips are enlarged to this: VMAF looks at four scales, each half of the one before."""


class VmafToReference:
    """VMAF / 100 of each clip against the reference clip of its prompt, in [0, 1].

    For work that has a right answer: reconstruction, distillation, quantised or cached inference.
    The references are `<prompt_id>.npy` files in `config.folder`, [T, H, W, 3] uint8, of the clips'
    size. A prompt without one is not judged (NaN, which counts as missing).

    Sees: compression, blur, noise and misplaced frames, against the reference.
    Blind to: whether the reference is any good. VMAF was fitted to films at 1080 lines; on small or
    drawn clips read it as an order, not as a percentage of quality. Gamed by: sharpening.
    """

    BLIND_TO = ("whether the reference is any good", "changes of hue: it looks at luma only")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        folder: str = ""
        """Where the references are."""

    def __init__(self, config: Config) -> None:
        self._folder = need_folder(
            config.folder, "vmaf", holds="reference clips, <prompt_id>.npy [T, H, W, 3] uint8"
        )
        self._ffmpeg = open_ffmpeg("vmaf")
        self.clip_spec = ClipSpec(min_frames=2)

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] and B prompts -> [B] float32."""
        pairs = zip(videos, prompts, strict=True)
        return torch.tensor([self._one(to_rgb(video), prompt) for video, prompt in pairs])

    def _one(self, frames: npt.NDArray[np.uint8], prompt: Prompt) -> float:
        file = self._folder / f"{prompt.prompt_id}.npy"
        if not file.is_file():
            return float("nan")
        reference = np.load(file, allow_pickle=False)
        return compare(frames, reference, ffmpeg=self._ffmpeg)["vmaf"] / 100.0


def compare(
    frames: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8], *, ffmpeg: str
) -> Mapping[str, float]:
    """Return the means over frames of "vmaf" (0 to 100), "ssim" (0 to 1) and "psnr_y" (dB).

    Args:
        frames, reference: [T, H, W, 3] uint8 of the same shape.
        ffmpeg: the binary, from `open_ffmpeg`.
    """
    if frames.shape != reference.shape or reference.dtype != np.uint8:
        raise ValueError(
            f"vmaf: expected a reference {frames.shape} uint8, as the clip, got {reference.shape} "
            f"{reference.dtype}. VMAF compares pixel by pixel; make them the same size."
        )
    scale = f"scale=-2:{max(MIN_HEIGHT, frames.shape[1])}:flags=bicubic,format=yuv420p"
    options = r"log_fmt=json:log_path=log.json:n_threads=1:feature=name=psnr|name=float_ssim"
    graph = f"[0:v]{scale}[main];[1:v]{scale}[reference];[main][reference]libvmaf={options}"
    with tempfile.TemporaryDirectory(prefix="rlvid_vmaf_") as name:
        folder = Path(name)
        (folder / "main.rgb").write_bytes(frames.tobytes())
        (folder / "reference.rgb").write_bytes(reference.tobytes())
        inputs = raw_input(frames, "main.rgb", fps=25)
        inputs += raw_input(reference, "reference.rgb", fps=25)
        run([ffmpeg, *inputs, "-lavfi", graph, "-f", "null", "-"], folder=folder)
        pooled = json.loads((folder / "log.json").read_text())["pooled_metrics"]
    return {
        "vmaf": float(pooled["vmaf"]["mean"]),
        "ssim": float(pooled["float_ssim"]["mean"]),
        "psnr_y": float(pooled["psnr_y"]["mean"]),
    }
