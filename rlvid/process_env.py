"""The variables of a role's process, given to Ray only where the process would not inherit them.

Ray starts a process that has an environment of its own by way of another Python, which imports Ray
for it: half a second of a core more. And those that it keeps ready are for processes without one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

LOCAL_CLUSTER = "RLVID_CLUSTER_MARK"
"""In the environment of a driver that started its cluster, which inherited all the rest of it
(`rlvid.launch.cluster_guard`)."""


def runtime_env_of(
    variables: Mapping[str, str], others: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the `runtime_env` of an actor; {} where it inherits the variables.

    Args:
        others: the keys of `runtime_env` beside `env_vars`.
    """
    is_there = all(os.environ.get(name) == value for name, value in variables.items())
    if is_there and LOCAL_CLUSTER in os.environ and not others:
        return {}
    return {**(others or {}), "env_vars": dict(variables)}
