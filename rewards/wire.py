"""What clips, prompts and scores look like in bytes: msgpack with a schema, never pickle.

Both the pipes to a scorer in its own environment (`isolation/`) and the HTTP service
(`service/`) speak it. Whatever arrives is checked before it is used: a body that is
too large, cut off, of wrong types or with a key too many is one WireError that says where.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sized
from typing import Annotated, Any, Literal, TypeVar, cast

import msgpack
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from torch import Tensor

from rlvid.records import Prompt

MAX_MESSAGE_BYTES = 2**32 - 1
"""What msgpack can hold in one piece: 21 clips of 81 frames at 480x832 as float32, 10 as RGB."""
MAX_TEXT = 100_000
"""Characters of a prompt or an error."""
MAX_ITEMS = 100_000
"""Entries of all lists and maps of a message: each takes a byte of a body and 70 of memory."""
MAX_LENGTH = 65_536
"""Entries of one list or map. What they announce is set aside before the first is read."""

DTYPES: Mapping[str, torch.dtype] = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "int32": torch.int32,
    "int64": torch.int64,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}
Dtype = Literal["bool", "uint8", "int32", "int64", "float16", "float32", "float64"]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(max_length=256)]


class WireError(ValueError):
    """Bytes that are not the message they should be."""


class Message(BaseModel):
    """One message or a part of one; nothing is converted and no key is ignored."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Array(Message):
    """A tensor as its bytes in C order."""

    shape: Annotated[list[NonNegativeInt], Field(max_length=8)]
    dtype: Dtype
    data: bytes

    @model_validator(mode="after")
    def _check(self) -> Array:
        expected = math.prod(self.shape) * DTYPES[self.dtype].itemsize
        if len(self.data) != expected:
            raise ValueError(
                f"{self.dtype} {tuple(self.shape)} takes {expected} bytes, got {len(self.data)}"
            )
        return self

    def tensor(self) -> Tensor:
        """Return it as a tensor of its own memory."""
        dtype = DTYPES[self.dtype]
        if not self.data:
            return torch.empty(self.shape, dtype=dtype)
        # bytearray copies; frombuffer on bytes would give a tensor that must not be written to.
        return torch.frombuffer(bytearray(self.data), dtype=dtype).reshape(self.shape)


class WirePrompt(Message):
    """See records.Prompt; its media travel as each way allows (isolation, service)."""

    prompt_id: Name
    text: Text
    enhanced_text: Text | None
    facts: dict[Name, Text]
    questions: list[Text] = []

    def prompt(self) -> Prompt:
        """Return the record, without media."""
        return Prompt(
            prompt_id=self.prompt_id,
            text=self.text,
            enhanced_text=self.enhanced_text,
            facts=self.facts,
            questions=tuple(self.questions),
        )


M = TypeVar("M")
C = TypeVar("C", bound=Sized)


def array(tensor: Tensor) -> dict[str, Any]:
    """Return what `Array` reads; the bytes are a view, so pack before the tensor changes."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy has no such type
        tensor = tensor.float()
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise WireError(f"cannot send a {dtype} tensor; expected one of {', '.join(DTYPES)}")
    # A flat view as bytes; an empty tensor has no memory to view.
    data = tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
    return {"shape": list(tensor.shape), "dtype": dtype, "data": data}


def prompt(record: Prompt) -> dict[str, Any]:
    """Return what `WirePrompt` reads: all but the media."""
    return {
        "prompt_id": record.prompt_id,
        "text": record.text,
        "enhanced_text": record.enhanced_text,
        "facts": dict(record.facts),
        "questions": list(record.questions),
    }


def pack(message: Mapping[str, Any]) -> bytes:
    """Return the message as msgpack; WireError when it holds what msgpack does not know."""
    try:
        return cast(bytes, msgpack.packb(message, use_bin_type=True))
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"cannot be sent: {error}") from error


def unpack(
    body: bytes, kind: type[M] | Any, *, where: str, max_bytes: int, max_items: int = MAX_ITEMS
) -> M:
    """Return `body` as a `kind`: a Message, or a union of several told apart by a key.

    Raises:
        WireError: too large, not msgpack, cut off, or not what `kind` says.
    """
    if len(body) > max_bytes:
        raise WireError(f"{where}: {len(body)} bytes, expected at most {max_bytes}")
    count = _Counter(max_items)
    try:
        value = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            max_array_len=MAX_LENGTH,
            max_map_len=MAX_LENGTH,
            object_hook=count,
            list_hook=count,
        )
    except _TooManyItemsError as error:
        raise WireError(f"{where}: {error}") from error
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise WireError(f"{where}: no whole msgpack message ({reason})") from error
    try:
        return cast(M, TypeAdapter(kind).validate_python(value))
    except ValidationError as error:
        raise WireError(f"{where}: {_first(error)}") from error


class _TooManyItemsError(ValueError):
    """A message of more lists, maps and entries than any of ours has."""


class _Counter:
    """Called with each list and map when it is whole; ends the reading when they are too many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen = 0

    def __call__(self, container: C) -> C:
        self._seen += 1 + len(container)
        if self._seen > self._most:
            raise _TooManyItemsError(
                f"more than {self._most} entries in its lists and maps; send fewer in one message"
            )
        return container


def _first(error: ValidationError) -> str:
    """Return the first thing wrong, without the bytes it was found in."""
    details = error.errors(include_url=False, include_input=False)[0]
    path = ".".join(str(part) for part in details["loc"])
    reason = str(details.get("ctx", {}).get("error", "")) or details["msg"]
    return f"{path}: {reason}" if path else reason
