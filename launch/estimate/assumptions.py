"""What an estimate assumes and a recipe does not say; `rlvid plan --assume NAME=VALUE` changes it.

None of these numbers was measured. They are printed with every estimate that stands on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from rlvid.config.base import Section
from rlvid.observability.mfu import PEAK_BF16, TERA


class Assumptions(Section):
    """Shares are of the device's dense bfloat16 peak."""

    gpu: str = "NVIDIA H100 80GB HBM3"
    """Name in `rlvid.observability.mfu.PEAK_BF16`, which has the peak."""
    gpu_memory_gib: float = Field(default=78.0, gt=0.0)
    """Of one GPU, as far as processes can have it."""
    sampling_mfu: float = Field(default=0.4, gt=0.0, le=1.0)
    """Of the transformer, and of the text encoder, without gradient."""
    training_mfu: float = Field(default=0.4, gt=0.0, le=1.0)
    """Of forwards and backwards, second forwards of checkpointing counted as work."""
    vae_mfu: float = Field(default=0.1, gt=0.0, le=1.0)
    """Of convolutions in float32 on a GPU made for bfloat16."""
    judge_mfu: float = Field(default=0.3, gt=0.0, le=1.0)
    """Of a judge that reads a clip and answers with one token."""
    writer_mfu: float = Field(default=0.03, gt=0.0, le=1.0)
    """Of a language model that writes, bound by memory."""
    pixels_per_token: int = Field(default=784, ge=1)
    """Of a frame shown to a judge: 28 x 28, as Qwen2.5-VL has it; others take fewer tokens."""
    question_tokens: int = Field(default=100, ge=1)
    """Of the text of one request to a judge."""
    writer_tokens: int = Field(default=4000, ge=1)
    """Read and written for each prompt that is kept: analogies, of which half are dropped, the long
    form, the questions."""
    mp4_bits_per_pixel: float = Field(default=0.3, gt=0.0)
    """Of real clips as they are kept."""

    @field_validator("gpu")
    @classmethod
    def _known(cls, gpu: str) -> str:
        if gpu not in PEAK_BF16:
            raise ValueError(f"no peak is known for {gpu!r}; known: {', '.join(PEAK_BF16)}")
        return gpu

    @property
    def peak(self) -> float:
        """FLOP/s."""
        return PEAK_BF16[self.gpu] * TERA


def read_assumptions(settings: Sequence[str]) -> Assumptions:
    """Return the assumptions with what "sampling_mfu=0.5" and the like change.

    Raises:
        ValueError: an unknown name, or a value it cannot have.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(
                f"--assume: expected NAME=VALUE, got {setting!r}, e.g. --assume sampling_mfu=0.5"
            )
        values[name.strip()] = yaml.safe_load(text)
    try:
        return Assumptions.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"--assume {name}: {first['msg']}, got {values.get(name)!r}. "
            f"Names are: {', '.join(Assumptions.model_fields)}"
        ) from error
