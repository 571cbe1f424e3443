"""A gang of one rank in the test process: the engine needs a process group, if only of itself."""

from __future__ import annotations

import pytest

from rlvid.learners.local_gang import join_alone


@pytest.fixture(scope="session", autouse=True)
def one_rank() -> None:
    """Describe a gang of one; kept for the session, since DeepSpeed joins once per process."""
    join_alone()
