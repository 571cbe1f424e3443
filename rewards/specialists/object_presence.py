"""Whether the frames show the objects of the prompt, in the right number, by a detector.

Two open-vocabulary detectors: OWLv2 (arXiv:2306.09683) by transformers, and YOLO-World
(arXiv:2401.17270) exported to ONNX with its classes fixed, so that neither the ultralytics package
(AGPL-3) nor its pickled weights are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rlvid.records import Prompt
from rlvid.rewards.base import ClipSpec, Serving
from rlvid.rewards.specialists.needs import fingerprint, need_file, need_folder, need_package

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}


class Detector(Protocol):
    """Finds things by name in one picture."""

    def find(self, frame: Tensor, names: Sequence[str]) -> list[Tensor]:
        """[3, H, W] in [0, 1] -> for each name boxes and scores [M, 5]: x0, y0, x1, y1, score."""
        ...


class ObjectPresence:
    """Mean over frames and objects of the best detection, times agreement with the count; [0, 1].

    The objects are `prompt.facts["object"]` (several parted by ", ") or `config.objects`; their
    number, when `prompt.facts["count"]` has one, costs exp(-|found - wanted|). Without any object
    to look for the clip is not judged (NaN).

    Wants a folder. `owlv2`: an OWLv2 model as transformers saves it. `yolo_world`:
    yolo_world.onnx, exported with its classes set, and classes.txt with one class a line.

    Sees: missing and wrong objects, wrong numbers of them.
    Blind to: time, colours beyond the name, what the objects do.
    Gamed by: posters of the object. On drawn worlds such networks see kites and umbrellas.
    """

    BLIND_TO = ("time", "what the objects do", "drawn objects")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        folder: str = ""
        detector: Literal["owlv2", "yolo_world"] = "owlv2"
        objects: tuple[str, ...] = ()
        """Looked for in every clip, when the prompt's facts name none."""
        num_frames: int = 3
        threshold: float = 0.2
        """Score from which a detection counts as one of the number."""

    def __init__(self, config: Config) -> None:
        folder = need_folder(config.folder, "object_presence", holds=f"the {config.detector} model")
        self._config = config
        self._detector: Detector = (
            Owlv2(folder) if config.detector == "owlv2" else YoloWorld(folder)
        )
        self.clip_spec = ClipSpec()
        self.serving = Serving(batch_size=1)
        names = {"owlv2": ("model.safetensors",), "yolo_world": ("yolo_world.onnx", "classes.txt")}
        self.version = fingerprint(*(folder / name for name in names[config.detector]))

    def score(self, videos: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """[B, T, 3, H, W] float32 in [0, 1] and B prompts -> [B] float32."""
        pairs = zip(videos, prompts, strict=True)
        return torch.tensor([self._one(video, prompt) for video, prompt in pairs])

    def _one(self, video: Tensor, prompt: Prompt) -> float:
        named = tuple(filter(None, prompt.facts.get("object", "").split(", ")))
        names = named or self._config.objects
        if not names:
            return float("nan")
        count = min(self._config.num_frames, len(video))
        chosen = [int((n + 0.5) * len(video) / count) for n in range(count)]
        wanted = _number(prompt.facts.get("count", ""))
        return float(np.mean([self._frame(video[n], names, wanted) for n in chosen]))

    def _frame(self, frame: Tensor, names: Sequence[str], wanted: int | None) -> float:
        values = []
        for boxes in self._detector.find(frame, names):
            best = float(boxes[:, 4].max()) if len(boxes) else 0.0
            kept = suppress(boxes[boxes[:, 4] >= self._config.threshold])
            off = 0 if wanted is None else abs(len(kept) - wanted)
            values.append(best * float(np.exp(-off)))
        return float(np.mean(values))


class Owlv2:
    """OWLv2 by transformers."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, Owlv2ForObjectDetection

        for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
            need_file(folder, name, scorer="object_presence", what="an OWLv2 model")
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = Owlv2ForObjectDetection.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
        self._model.requires_grad_(False).eval()

    @torch.no_grad()
    def find(self, frame: Tensor, names: Sequence[str]) -> list[Tensor]:
        """See `Detector`; every patch answers, so the boxes still need `suppress`."""
        side = self._model.config.vision_config.image_size
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            [f"a photo of a {name}" for name in names],
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        output = self._model.to(frame.device)(
            input_ids=tokens["input_ids"].to(frame.device),
            attention_mask=tokens["attention_mask"].to(frame.device),
            pixel_values=_owl_pixels(frame, side),
        )
        centre, size = output.pred_boxes[0].split(2, dim=-1)
        corners = torch.cat([centre - size / 2, centre + size / 2], dim=-1) * max(frame.shape[1:])
        scores = output.logits[0].sigmoid()
        return [
            torch.cat([corners, scores[:, n : n + 1]], dim=1).float().cpu()
            for n in range(len(names))
        ]


def _owl_pixels(frame: Tensor, side: int) -> Tensor:
    """[3, H, W] -> [1, 3, side, side]: padded with grey at right and bottom, in CLIP's range."""
    height, width = frame.shape[1:]
    longest = max(height, width)
    square = functional.pad(frame[None], (0, longest - width, 0, longest - height), value=0.5)
    resized = functional.interpolate(square, (side, side), mode="bilinear", antialias=True)
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073), device=frame.device)[:, None, None]
    deviation = torch.tensor((0.26862954, 0.26130258, 0.27577711), device=frame.device)
    return (resized - mean) / deviation[:, None, None]


class YoloWorld:
    """YOLO-World exported to ONNX: input [1, 3, S, S] in [0, 1], output [1, 4 + classes, M]."""

    def __init__(self, folder: Path) -> None:
        model = need_file(
            folder,
            "yolo_world.onnx",
            scorer="object_presence",
            what="YOLO-World exported to ONNX (ultralytics: model.set_classes, then export)",
        )
        classes = need_file(
            folder,
            "classes.txt",
            scorer="object_presence",
            what="the exported classes, a line each",
        )
        self._classes = classes.read_text().split("\n")
        runtime = need_package("onnxruntime", "object_presence")
        self._session = runtime.InferenceSession(str(model), providers=["CPUExecutionProvider"])

    def find(self, frame: Tensor, names: Sequence[str]) -> list[Tensor]:
        """See `Detector`; ValueError for a name that was not exported."""
        unknown = [name for name in names if name not in self._classes]
        if unknown:
            raise ValueError(
                f"object_presence: {', '.join(unknown)} not among the exported classes. Export "
                "YOLO-World with them, or use the owlv2 detector, which takes any words."
            )
        entry = self._session.get_inputs()[0]
        side = int(entry.shape[2])
        picture = functional.interpolate(frame[None], (side, side), mode="bilinear", antialias=True)
        (output,) = self._session.run(None, {entry.name: picture.cpu().numpy()})
        return yolo_boxes(
            torch.from_numpy(output), [self._classes.index(name) for name in names], side, frame
        )


def yolo_boxes(output: Tensor, classes: Sequence[int], side: int, frame: Tensor) -> list[Tensor]:
    """[1, 4 + classes, M] of centre, size, scores -> boxes [M, 5] in px of the frame."""
    scale = torch.tensor([frame.shape[2] / side, frame.shape[1] / side])
    centre, size = output[0, :2].T * scale, output[0, 2:4].T * scale
    corners = torch.cat([centre - size / 2, centre + size / 2], dim=1)
    return [torch.cat([corners, output[0, 4 + n, :, None]], dim=1) for n in classes]


def suppress(boxes: Tensor, overlap: float = 0.5) -> Tensor:
    """[M, 5] -> the boxes that no better one overlaps by more than `overlap` of their union."""
    left = boxes[boxes[:, 4].argsort(descending=True)]
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low = torch.maximum(best[:2], left[:, :2])
        high = torch.minimum(best[2:4], left[:, 2:4])
        shared = (high - low).clamp(min=0).prod(dim=1)
        areas = (left[:, 2:4] - left[:, :2]).clamp(min=0).prod(dim=1)
        union = areas + (best[2:4] - best[:2]).clamp(min=0).prod() - shared
        left = left[shared / union.clamp(min=1e-6) <= overlap]
    return torch.stack(kept) if kept else boxes


def _number(text: str) -> int | None:
    if text.isdigit():
        return int(text)
    return NUMBERS.get(text.lower())
