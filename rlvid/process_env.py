"""The variables of a role's process, given to Ray only where the process would not inherit them.

Ray starts a process that has an environment of its own by way of another Python, which imports Ray
for it: half a second of a core more. And those that it keeps ready are for processes without one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_inherited: Mapping[str, str] = {}
"""What the processes of the cluster that this one started have from it."""


@contextmanager
def own_cluster() -> Iterator[None]:
    """Within the block the Ray cluster is one that this process starts, now, on this machine."""
    global _inherited
    before, _inherited = _inherited, dict(os.environ)
    try:
        yield
    finally:
        _inherited = before


def runtime_env_of(
    variables: Mapping[str, str], others: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the `runtime_env` of an actor; {} where it inherits the variables.

    Args:
        others: the keys of `runtime_env` beside `env_vars`.
    """
    is_there = all(_inherited.get(name) == value for name, value in variables.items())
    if is_there and not others:
        return {}
    return {**(others or {}), "env_vars": dict(variables)}
