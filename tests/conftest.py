"""What every test begins with."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator

import pytest

from rlvid.collector import paused_collector

# As `open_cluster` does, for the clusters that tests start themselves. At Ray's own 15, beside a
# test that computes at 0 in another worker, processes would get a thirtieth of a core, and be late
# for deadlines that mean something.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import the tests, and with them torch and diffusers, once and out of the collector's way."""
    with paused_collector():
        return (yield)


@pytest.fixture(autouse=True)
def _loggers_as_at_the_start() -> None:
    """Undo what an earlier test, or a library that it imported, did to logging in this process.

    `logging.config` disables every logger it is not told of, others raise levels; then `caplog`
    sees nothing.
    """
    logging.disable(logging.NOTSET)
    logging.root.setLevel(logging.WARNING)
    logging.root.disabled = False
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "rlvid" and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.filters.clear()
            logger.setLevel(logging.NOTSET)
