"""Arguments of a transformer on their way to other processes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgpack
import pytest
import torch

from rlvid.actors.gang_calls import Channel, put_together, taken_apart
from rlvid.process_groups import open_group, open_store

ARGUMENTS: dict[str, Any] = {
    "hidden_states": torch.randn(2, 3),
    "image_rotary_emb": (torch.randn(4), torch.randn(4)),
    "encoder_attention_mask": torch.tensor([True, False]),
    "timestep": torch.tensor(0.1),
    "rope_interpolation_scale": (1 / 3, 32, 32),
    "ofs": None,
    "return_dict": False,
    "name": "text",
}


def test_arguments_come_back_as_they_were() -> None:
    """As every family here gives them; floats to the bit, and nothing but msgpack in between."""
    tensors: list[torch.Tensor] = []
    tree = msgpack.unpackb(msgpack.packb(taken_apart(ARGUMENTS, tensors)))
    found = put_together(tree, tensors)
    assert found.keys() == ARGUMENTS.keys()
    assert found["hidden_states"] is ARGUMENTS["hidden_states"]
    assert found["image_rotary_emb"][1] is ARGUMENTS["image_rotary_emb"][1]
    plain = ("rope_interpolation_scale", "ofs", "return_dict", "name")
    assert [found[name] for name in plain] == [ARGUMENTS[name] for name in plain]


def test_argument_that_no_message_holds_is_refused() -> None:
    with pytest.raises(TypeError, match=r"given a set: expected tensors, .*Set it to 1"):
        taken_apart({"seen": {1, 2}}, [])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4).T,
        torch.randn(1).expand(5),
        torch.tensor([True, False]),
        torch.tensor(2.5, dtype=torch.bfloat16),
        torch.empty(0, 3),
    ],
)
def test_every_kind_of_tensor_is_sent_whole(tensor: torch.Tensor) -> None:
    """Strided, expanded, without numbers, without dimensions, and of types gloo does not know."""
    store, _ = open_store("127.0.0.1")
    deadline = timedelta(seconds=30)
    group = open_group("gloo", store, 0, 1, deadline=deadline, host="127.0.0.1")
    channel = Channel(group, torch.device("cpu"), deadline)
    channel.send({"kind": "forward"}, [tensor])
    assert torch.equal(channel.share(tensor), tensor)
