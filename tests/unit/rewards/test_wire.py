"""Bytes from outside: the same tensors come back, and anything else is one clear error."""

from __future__ import annotations

import pickle
import tracemalloc
from typing import Any

import msgpack
import pytest
import torch

from rlvid.records import Prompt
from rlvid.rewards import wire


class Clips(wire.Message):
    videos: wire.Array
    prompts: list[wire.WirePrompt]


PROMPT = Prompt(prompt_id="ab", text="a red ball", facts={"colour": "red"})


def body(**changes: Any) -> bytes:
    message = {"videos": wire.array(torch.zeros(2, 3)), "prompts": [wire.prompt(PROMPT)]}
    return wire.pack({**message, **changes})


def read(data: bytes, max_bytes: int = 10_000) -> Clips:
    return wire.unpack(data, Clips, where="here", max_bytes=max_bytes)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32", "float64"])
def test_a_tensor_comes_back_bit_for_bit(dtype: str) -> None:
    tensor = (torch.rand(2, 3, 4) * 200).to(wire.DTYPES[dtype])[:, 1:]  # not contiguous
    again = read(body(videos=wire.array(tensor))).videos.tensor()
    assert again.dtype == tensor.dtype
    assert torch.equal(again, tensor)


def test_an_empty_and_a_scalar_tensor_come_back() -> None:
    for tensor in (torch.zeros(0, 3), torch.tensor(2.5)):
        again = read(body(videos=wire.array(tensor))).videos.tensor()
        assert torch.equal(again, tensor)


def test_a_prompt_comes_back() -> None:
    assert read(body()).prompts[0].prompt() == PROMPT


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (body()[:-5], "no whole msgpack"),
        (b"", "no whole msgpack"),
        (body() + b"\x00", "no whole msgpack"),
        (b"\xc1\xff garbage", "no whole msgpack"),
        (b"\x91" * 5000, "no whole msgpack"),
        (pickle.dumps({"videos": 1}), "here: "),
        (body(videos={"shape": [2, 2], "dtype": "uint8", "data": b"123"}), "takes 4 bytes, got 3"),
        (body(videos={"shape": [-1, 4], "dtype": "uint8", "data": b""}), "videos.shape.0"),
        (body(videos={"shape": [2**40, 2**40], "dtype": "uint8", "data": b""}), "got 0"),
        (body(videos={"shape": [1], "dtype": "object", "data": b"1"}), "videos.dtype"),
        (body(videos=[1, 2]), "videos: "),
        (body(prompts=[{"text": "x"}]), "prompts.0.prompt_id"),
        (body(extra=1), "extra: "),
        (body(prompts=msgpack.ExtType(5, b"x")), "prompts: "),
        (msgpack.packb([1, 2]), "here: "),
        (msgpack.packb({1: 2}), "no whole msgpack"),
    ],
)
def test_a_wrong_body_is_one_line(data: bytes, complaint: str) -> None:
    with pytest.raises(wire.WireError, match=complaint) as caught:
        read(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_oversized_body_is_refused_unread() -> None:
    with pytest.raises(wire.WireError, match="1000001 bytes, expected at most 10000"):
        read(b"\x00" * 1_000_001)


def test_small_things_do_not_unpack_to_a_multiple_of_the_body() -> None:
    """A byte can be an empty map, which takes 64 in memory: 4 MiB of them would take 300 MB."""
    lists = b"\xdc\xff\xff" + b"\x80" * 65535
    data = b"\xdc\x00\x40" + lists * 64
    tracemalloc.start()
    with pytest.raises(wire.WireError, match="here: more than 100000 entries in its lists"):
        read(data, max_bytes=2**23)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e7


@pytest.mark.parametrize("head", [b"\xdd\x00\x01\x00\x01", b"\xdf\x00\x01\x00\x01"])
def test_no_list_announces_what_nobody_sends(head: bytes) -> None:
    """Nested ones, each of which sets aside what it announces, would multiply."""
    with pytest.raises(wire.WireError, match="65537 exceeds"):
        read(head + b"\x00" * 200_000, max_bytes=2**20)


def test_an_answer_to_the_largest_request_is_read() -> None:
    """4096 clips, what a service holds by default, with the scores of three scorers."""
    scores = [{"value": 0.5, "error": None}] * 4096 * 3
    message: dict[str, list[Any]] = wire.unpack(
        wire.pack({"scores": scores}), dict[str, list[Any]], where="here", max_bytes=2**20
    )
    assert len(message["scores"]) == 4096 * 3


def test_a_flipped_bit_is_an_error_or_other_values_and_never_a_crash() -> None:
    """Nothing but a WireError may come out of bytes from outside; every bit of a body is tried."""
    good = body()
    refused = 0
    for bit in range(len(good) * 8):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        try:
            assert read(bytes(data)).videos.tensor().numel() == 6
        except wire.WireError:
            refused += 1
    assert refused > len(good)


def test_a_message_that_msgpack_cannot_hold_is_an_error() -> None:
    with pytest.raises(wire.WireError, match="cannot be sent"):
        wire.pack({"x": object()})
