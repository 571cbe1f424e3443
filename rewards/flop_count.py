"""How many FLOPs a scorer takes of a clip: counted by torch on one clip of each shape.

The clip is scored once more under `FlopCounterMode` and that answer is thrown away, for under the
counter torch takes other ways: in inference mode it takes operators apart, past autocast, and it
runs compiled modules eagerly, and either rounds otherwise. A scorer's answers are so the same bits
with the counter and without; the price is one clip more for each shape and process.

What is counted are the matrix products, convolutions and attention of torch in the scorer's own
thread. It is too little where a scorer calls kernels that torch has no formula for (flash-attn's
own functions, fused operators, triton, TensorRT), or has threads of its own. Nothing at all is seen
of numpy, of another process (`python:` of its entry) and of a server, so there is no figure there:
0 counted is not known. What depends on the clip or the prompt, like the length of an answer that is
generated, is that of the clip that was counted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from rlvid.config.model import ModelConfig
from rlvid.observability.mfu import device_name, peak_flops

logger = logging.getLogger(__name__)

COUNTS_WITHIN = 0.25
"""Of a call's deadline: the count may take as long again, or longer where it runs eagerly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCost:
    """What a call of a scorer took."""

    seconds: float
    flops: float | None
    """Of the clips that got an answer, NaN included; None where they are not known."""


class FlopMeter:
    """FLOPs of one scorer by the shape that it is given; each is counted once."""

    def __init__(self, where: str, *, longest_s: float = math.inf) -> None:
        """`where` names the scorer in the log.

        Args:
            longest_s: a call that took longer is not followed by a count, which is part of it for
                whoever keeps its deadline; the next one may be.
        """
        self._where = where
        self._longest_s = longest_s
        self._known: dict[tuple[int, ...], float | None] = {}

    def of(
        self, shape: Sequence[int], call: Callable[[], object], *, took_s: float
    ) -> float | None:
        """Return the FLOPs of what is asked for with a tensor of this shape; None if unknown.

        Args:
            call: scores such a tensor; called at the first of each shape. That it raises is
                logged, and leaves the shape without a figure.
            took_s: seconds of the call whose FLOPs are asked for.
        """
        key = tuple(shape)
        if key not in self._known:
            if took_s > self._longest_s:
                return None
            self._known[key] = self._count(key, call)
        return self._known[key]

    def _count(self, shape: tuple[int, ...], call: Callable[[], object]) -> float | None:
        counter = FlopCounterMode(display=False)
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        try:
            # Its random numbers are given back: a scorer may draw some.
            with torch.random.fork_rng(devices=devices), counter:
                call()
        except Exception as error:  # of a plug-in; its scores are there already
            logger.warning("%s: no FLOPs of clips %s: %s", self._where, list(shape), error)
            return None
        return float(counter.get_total_flops()) or None


def meter_for(device: str, where: str, *, deadline_s: float) -> FlopMeter | None:
    """Return a meter for a scorer whose clips are put on `device`; a call may take `deadline_s`.

    None where the device's peak is not known, and above all on a CPU: nobody asks for FLOPs there.
    """
    if peak_flops(name_of(device)) is None:
        return None
    return FlopMeter(where, longest_s=COUNTS_WITHIN * deadline_s)


def name_of(device: str) -> str:
    """Return the name of the GPU that a scorer's clips are put on, "" for another device."""
    return device_name() if torch.device(device).type == "cuda" else ""


def decoder_device(model: ModelConfig | None) -> str:
    """Return the name of the GPU that a process decodes on, "" where it does so on a CPU."""
    return "" if model is None or model.device == "cpu" else device_name()
