"""Whether a clip shows the words that its prompt puts in quotation marks, by a real OCR network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec
from rlvid.rewards.specialists.needs import need_package

Image = npt.NDArray[np.uint8]

_QUOTED = re.compile(r'"([^"]+)"|\u201c([^\u201d]+)\u201d|(?<!\w)\'([^\']+)\'(?!\w)')


class TextInVideo:
    """1 minus the normalised edit distance between the prompt's quoted text and what frames show.

    In [0, 1]: the mean over frames of `1 - distance / length of the longer text`, white space left
    out; of several quotations, their mean. For each the best run of neighbouring lines counts.
    PP-OCRv6 by rapidocr reads the frames (Apache-2.0; its MODEL_LICENSES.md must go with the
    weights).

    Sees: wrong, missing and misspelt words; words that only some frames show.
    Blind to: other text in the picture, font, place, and whether the words move with their object.
    Gamed by: plain captions laid over the picture. A prompt that quotes nothing is not judged (NaN,
    which counts as missing): use it with prompts that all ask for text.
    """

    CLAIMS = ("rendered_text",)
    BLIND_TO = ("other text in the picture", "font and place of the text", "text below 11 px")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        num_frames: int = 2
        """Frames read, evenly over the clip; about a second each on one core."""
        detect: bool = True
        """Find the text first; False reads each frame as one line, 5 to 10 times faster."""
        region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
        """Top, left, bottom, right of the part that is read, as shares of height and width."""
        ignore_case: bool = False

    def __init__(self, config: Config) -> None:
        top, left, bottom, right = config.region
        if not (0.0 <= top < bottom <= 1.0 and 0.0 <= left < right <= 1.0):
            raise ValueError(
                "text_in_video: region must be (top, left, bottom, right) with 0 <= top < bottom "
                f"<= 1 and 0 <= left < right <= 1, got {config.region}"
            )
        if config.num_frames < 1:
            raise ValueError(f"text_in_video: num_frames must be positive, got {config.num_frames}")
        self._config = config
        self._engine = _open_engine()
        self.clip_spec = ClipSpec()
        self.version = "rapidocr 3.10.0, PP-OCRv6 small"

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] and B prompts -> [B] float32."""
        pairs = zip(videos, prompts, strict=True)
        return torch.tensor([self._one(video, prompt.text) for video, prompt in pairs])

    def _one(self, video: Tensor, text: str) -> float:
        wanted = quoted(text.lower() if self._config.ignore_case else text)
        if not wanted:
            return float("nan")
        frames = [self.read(frame) for frame in self._frames(video)]
        return float(np.mean([[agreement(one, lines) for one in wanted] for lines in frames]))

    def _frames(self, video: Tensor) -> list[Image]:
        """The frames that are read, [H, W, 3] BGR, which is what the networks were trained with."""
        count = min(self._config.num_frames, len(video))
        chosen = [int((n + 0.5) * len(video) / count) for n in range(count)]
        top, left, bottom, right = self._config.region
        height, width = video.shape[2:]
        part = video[chosen, :, int(top * height) : round(bottom * height)]
        part = part[..., int(left * width) : round(right * width)]
        pixels = (part * 255.0).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        return [np.ascontiguousarray(frame.cpu().numpy()[..., ::-1]) for frame in pixels]

    def read(self, frame: Image) -> list[str]:
        """[H, W, 3] BGR -> the lines of text in it, in reading order."""
        if self._config.detect:
            result = self._engine(frame)
        else:
            result = self._engine(frame, use_det=False, use_cls=False, use_rec=True)
        lines = list(result.txts or ())
        return [line.lower() for line in lines] if self._config.ignore_case else lines


def quoted(text: str) -> list[str]:
    """Return what stands in quotation marks, e.g. ["OPEN"] of `a door that says "OPEN"`."""
    return [next(part for part in match if part) for match in _QUOTED.findall(text)]


def agreement(wanted: str, lines: Sequence[str]) -> float:
    """1 when a run of neighbouring lines says `wanted`, 0 when nothing in it fits."""
    target = "".join(wanted.split())
    squeezed = ["".join(line.split()) for line in lines]
    runs = [
        "".join(squeezed[first:last])
        for first in range(len(squeezed))
        for last in range(first + 1, len(squeezed) + 1)
    ]
    return max(
        (1.0 - edit_distance(target, run) / max(len(target), len(run)) for run in runs if run),
        default=0.0,
    )


def edit_distance(first: str, second: str) -> int:
    """Return the least number of letters to insert, delete or replace (Levenshtein)."""
    row = list(range(len(second) + 1))
    for index, letter in enumerate(first, start=1):
        previous, row[0] = row[0], index
        for column, other in enumerate(second, start=1):
            kept = previous + (letter != other)
            previous, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, kept)
    return row[-1]


def _open_engine() -> Any:
    need_package("onnxruntime", "text_in_video")
    rapidocr = need_package("rapidocr", "text_in_video")
    # One thread: the pool gives a scorer its cores, and several engines would fight for them.
    return rapidocr.RapidOCR(
        params={
            "Global.log_level": "error",
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )
