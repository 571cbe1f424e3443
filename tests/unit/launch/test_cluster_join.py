"""An address at which no cluster answers is refused before Ray waits for it."""

from __future__ import annotations

import re
import socket
import time

import pytest

from rlvid.launch.cluster import join
from rlvid.launch.cluster_nodes import await_cluster
from rlvid.launch.demand import ClusterError


@pytest.fixture
def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_nothing_listens(closed_port: int) -> None:
    """Ray itself would try for minutes and print what its client of the head logs."""
    address = f"127.0.0.1:{closed_port}"
    began = time.monotonic()
    with pytest.raises(ClusterError, match=re.escape(address)) as caught:
        join(address)
    assert time.monotonic() - began < 5.0
    assert f"`ray start --head --port={closed_port}`" in str(caught.value)


@pytest.mark.parametrize("address", ["10.0.0.1", "10.0.0.1:ray", ":6379", "10.0.0.1:70000"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=rf"expected HOST:PORT.*{re.escape(repr(address))}"):
        join(address)


def test_a_cluster_that_still_starts_is_asked_again(closed_port: int) -> None:
    """`rlvid doctor --nodes` comes before the head listens."""
    began = time.monotonic()
    with pytest.raises(ClusterError, match="nothing answers"):
        await_cluster(f"127.0.0.1:{closed_port}", deadline_s=0.5)
    assert 0.5 <= time.monotonic() - began < 5.0
