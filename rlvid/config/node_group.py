"""Groups of nodes: which nodes a role's processes live on, by a Ray resource that only these have.

    ray start --address=HEAD:PORT --resources='{"rollout": 1000}'        a node of the group rollout
    rollout.node_group: rollout                                          the actors' wish

Every process of the role asks for a little of the resource, so Ray places it on a node of the group
or waits for one, and an autoscaler brings a node of exactly that group. KubeRay has the resource in
`rayStartParams.resources` of a worker group (launch/kuberay.yaml).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from rlvid.config.base import Section

SHARE = 0.001
"""Of a group's resource that a process asks for: ten times the least that Ray counts. A node that
offers 1000 then has room for a million, so it is CPUs and GPUs that limit, as without a group."""
RESERVED = frozenset((
    "CPU", "GPU", "memory", "object_store_memory", "bundle",
    "TPU", "NPU", "HPU", "neuron_cores", "RBLN", "FURIOSA", "MBLT", "TTNPU",
))  # fmt: skip
"""Resources that Ray counts by itself: those of every node, of a placement group, and the devices
of `ray._private.accelerators` (Ray 2.60)."""
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}")
OF_PLACEMENT_GROUP = "_group_"
"""Ray names what a placement group has reserved CPU_group_0_0123abcd."""


def check_name(name: str) -> str:
    """Return the name of a group; ValueError where Ray would take it for something else."""
    if not NAME.fullmatch(name) or OF_PLACEMENT_GROUP in name:
        raise ValueError(
            "expected the name of a Ray resource: 1 to 63 letters, digits, '_', '.' or '-', a "
            f"letter first and no '{OF_PLACEMENT_GROUP}' in it, got {name!r}"
        )
    if name in RESERVED:
        raise ValueError(
            f"expected a resource of your own, got {name!r}, which Ray counts itself: give the "
            "nodes another one, as by `ray start --resources='{\"rollout\": 1000}'`"
        )
    return name


def is_name(resource: str) -> bool:
    """Return whether a resource of a node may be the name of a group."""
    return resource not in RESERVED and bool(NAME.fullmatch(resource))


NodeGroup = Annotated[str, AfterValidator(check_name)]
"""Type of every `node_group` of a recipe."""


def share_of(node_group: str | None) -> dict[str, float]:
    """Return what a process asks of Ray to be on a node of the group; {} for any node."""
    return {} if node_group is None else {node_group: SHARE}


def said_of(node_group: str | None, where: str) -> str:
    """Return the end of a message that no room was found, " ..."; "" without a group.

    Args:
        where: path of the setting.
    """
    if node_group is None:
        return ""
    return (
        f" Only nodes with the Ray resource {node_group!r} are asked ({where}): start some with "
        f"`ray start --resources='{{\"{node_group}\": 1000}}'`, have the autoscaler's group of "
        "that resource grow, or leave the setting out."
    )


def named_groups(section: Section, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, name) of each `node_group` that is set in a section and in those in it."""
    for field in type(section).model_fields:
        value, path = getattr(section, field), f"{where}{field}"
        if field == "node_group" and value is not None:
            yield path, value
        else:
            yield from _named_in(value, path)


def _named_in(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Section):
        yield from named_groups(value, f"{path}.")
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from _named_in(one, f"{path}.{key}")
    elif isinstance(value, tuple):
        for position, one in enumerate(value):
            yield from _named_in(one, f"{path}.{position}")


def check_groups(recipe: Section, address: str | None) -> None:
    """Raise ValueError for a group of nodes of a cluster that the run starts itself.

    Args:
        address: `cluster.address` of the recipe.
    """
    for path, name in named_groups(recipe) if address is None else ():
        raise ValueError(
            f"{path}: names nodes of a cluster that is joined, got {name!r} without "
            "cluster.address: the Ray that a run starts on this machine has no such node, and "
            "the role would wait for one in vain. Set cluster.address, or leave the group out"
        )
