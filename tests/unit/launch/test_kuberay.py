"""launch/kuberay.yaml against the schema of a RayJob, and what no schema says."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = yaml.safe_load((Path(__file__).parent / "schemas" / "rayjob.yaml").read_text())


@pytest.fixture
def job() -> Any:
    _, found = yaml.safe_load_all((ROOT / "launch" / "kuberay.yaml").read_text())
    return found


def problems(job: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    return [error.message for error in validator.iter_errors(job)]


def test_the_manifest_is_a_rayjob(job: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert problems(job) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.backofLimit", 3),
        ("spec.rayClusterSpec.authOptions.mode", "tokens"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("spec.rayClusterSpec.workerGroupSpecs.0.maxReplicas", "4"),
        ("spec.rayClusterSpec.workerGroupSpecs.1.template.spec.containers.0.volumeMount", []),
    ],
)
def test_what_the_operator_would_refuse_or_drop_is_found(job: Any, path: str, value: Any) -> None:
    broken = copy.deepcopy(job)
    *inner, last = path.split(".")
    place = broken
    for name in inner:
        place = place[int(name)] if name.isdigit() else place[name]
    place[last] = value
    assert problems(broken)


def test_every_mount_has_its_volume_and_the_claim_is_made_beside_it(job: Any) -> None:
    claim, _ = yaml.safe_load_all((ROOT / "launch" / "kuberay.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()
        assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_entrypoint_is_a_command_of_ours_that_looks_at_the_nodes_first(job: Any) -> None:
    """It goes through a shell and `ray job submit`: plain words only."""
    from typer.testing import CliRunner

    from rlvid.launch.cli import app

    program, *words = shlex.split(job["spec"]["entrypoint"])
    assert program == "rlvid"
    assert "--doctor" in words
    assert not set(job["spec"]["entrypoint"]) & set("&|;<>$`'\"")
    options = [word for word in words if word.startswith("--")]
    helped = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output
    assert all(option in helped for option in options)


def test_each_kind_of_role_has_a_group_that_grows(job: Any) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    has_gpu = {}
    for group in cluster["workerGroupSpecs"]:
        [container] = group["template"]["spec"]["containers"]
        has_gpu[group["groupName"]] = "nvidia.com/gpu" in container["resources"]["limits"]
        assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
    assert has_gpu == {"gpu": True, "cpu": False}
