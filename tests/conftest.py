"""What every test begins with."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def _loggers_as_at_the_start() -> None:
    """Undo what a library did that was configured in this process by an earlier test.

    `logging.config` disables every logger it is not told of, and then `caplog` sees nothing.
    """
    logging.disable(logging.NOTSET)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "rlvid" and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
