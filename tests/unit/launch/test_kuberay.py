"""launch/kuberay.yaml against schemas: of a RayJob, and of Kubernetes; and what no schema says.

The schema of a RayJob here is written by hand. RLVID_RAYJOB_CRD names a file to check against as
well: KubeRay's own definition, ray-operator/config/crd/bases/ray.io_rayjobs.yaml in its repository.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from ray.autoscaler._private.kuberay import autoscaling_config
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

import rlvid
from rlvid.config import Recipe
from rlvid.config.loader import load_recipe
from rlvid.config.node_group import named_groups, share_of
from tests.unit.launch.crd_schema import schema_of

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = yaml.safe_load((Path(__file__).parent / "schemas" / "rayjob.yaml").read_text())
KUBERNETES = "1.37"
CRD = os.environ.get("RLVID_RAYJOB_CRD", "")
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?")


@pytest.fixture
def claim() -> Any:
    found, _ = yaml.safe_load_all((ROOT / "launch" / "kuberay.yaml").read_text())
    return found


@pytest.fixture
def job() -> Any:
    _, found = yaml.safe_load_all((ROOT / "launch" / "kuberay.yaml").read_text())
    return found


def problems(schema: Any, value: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema)
    return [error.message for error in validator.iter_errors(value)]


def broken(tree: Any, path: str, value: Any) -> Any:
    """Return a copy with one value set."""
    copied = copy.deepcopy(tree)
    *inner, last = path.split(".")
    place = copied
    for name in inner:
        place = place[int(name)] if name.isdigit() else place[name]
    place[last] = value
    return copied


def templates(job: Any) -> Iterator[Any]:
    """Yield every pod template: of the head, the workers, and who submits."""
    cluster = job["spec"]["rayClusterSpec"]
    yield cluster["headGroupSpec"]["template"]
    yield from (group["template"] for group in cluster["workerGroupSpecs"])
    yield job["spec"]["submitterPodTemplate"]


def containers(template: Any) -> list[Any]:
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


def words(job: Any) -> list[str]:
    """Return the words behind `rlvid run` in the entrypoint."""
    return shlex.split(job["spec"]["entrypoint"])[4:]


def recipe_of(job: Any) -> Recipe:
    name, *others = words(job)
    return load_recipe(name, [word for word in others if "=" in word])


# Schemas


def test_the_manifest_is_a_rayjob(job: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert problems(SCHEMA, job) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.backofLimit", 3),
        ("spec.runtimeEnvYAML", {"py_modules": []}),
        ("spec.preRunningDeadlineSeconds", 0),
        ("spec.rayClusterSpec.upgradeStrategy", {"type": "Rolling"}),
        ("spec.rayClusterSpec.authOptions.mode", "tokens"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("spec.rayClusterSpec.workerGroupSpecs.0.maxReplicas", "4"),
        ("spec.rayClusterSpec.workerGroupSpecs.1.rayStartParams.resources", {"learner": 1000}),
    ],
)
def test_what_the_operator_would_refuse_or_drop_is_found(job: Any, path: str, value: Any) -> None:
    assert problems(SCHEMA, broken(job, path, value))


def test_the_volume_and_every_pod_are_what_kubernetes_takes(job: Any, claim: Any) -> None:
    """Strictly: what its published schema does not name is an error."""
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)
    for template in templates(job):
        kubernetes_validate.validate(pod_template(template), KUBERNETES, strict=True)
        for container in containers(template):
            for asked in container["resources"].values():
                assert all(QUANTITY.fullmatch(quantity) for quantity in asked.values())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.containers.0.volumeMount", []),
        ("spec.containers.0.resources.requests", ["cpu"]),
        ("spec.volumes.0.persistentVolumeClaim", {"claim": "rlvid-runs"}),
        ("spec.terminationGracePeriod", 150),
    ],
)
def test_a_pod_that_kubernetes_would_refuse_is_found(job: Any, path: str, value: Any) -> None:
    for template in templates(job):
        wrong = pod_template(broken(template, path, value))
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def pod_template(template: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "PodTemplate", "template": template}


@pytest.mark.skipif(
    not CRD, reason="RLVID_RAYJOB_CRD names no file of KubeRay's ray.io_rayjobs.yaml"
)
def test_the_manifest_is_what_kuberays_own_definition_takes(job: Any) -> None:
    schema = schema_of(yaml.safe_load(Path(CRD).read_text()), job["apiVersion"])
    assert problems(schema, job) == []
    misspelt = broken(job, "spec.rayClusterSpec.workerGroupSpecs.0.maxReplica", 4)
    assert any("maxReplica" in problem for problem in problems(schema, misspelt))


DEFINITION: Any = yaml.safe_load("""
spec:
  group: ray.io
  names: {kind: RayJob}
  versions:
    - name: v1
      schema:
        openAPIV3Schema:
          type: object
          properties:
            metadata: {type: object}
            spec:
              type: object
              required: [replicas]
              properties:
                replicas: {type: integer, format: int32}
                labels: {type: object, additionalProperties: {type: string}}
                free: {type: object, x-kubernetes-preserve-unknown-fields: true}
                pruned: {type: object}
                mode: {type: string, enum: [a, b], nullable: true}
                ports:
                  type: array
                  items: {type: object, properties: {port: {type: integer}}}
                memory:
                  anyOf: [{type: integer}, {type: string}]
                  pattern: ^[0-9]+Gi$
                  x-kubernetes-int-or-string: true
""")
"""Shaped as KubeRay's own definition is."""


@pytest.mark.parametrize(
    "spec",
    [
        {"labels": {"a": "b"}},
        {"free": {"whatever": 1}},
        {"pruned": {}},
        {"mode": None},
        {"memory": 5},
        {"memory": "5Gi"},
        {"ports": [{"port": 1}]},
    ],
)
def test_a_definition_takes_what_it_names(spec: Any) -> None:
    schema = schema_of(DEFINITION, "ray.io/v1")
    jsonschema.Draft202012Validator.check_schema(schema)
    value = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a", "labels": {}}}
    assert problems(schema, {**value, "spec": {"replicas": 1, **spec}}) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"spec": {"replicas": 1, "replica": 2}}, "'replica' was unexpected"),
        ({"spec": {"replicas": 2**31}}, "greater than the maximum of 2147483647"),
        ({"spec": {}}, "'replicas' is a required property"),
        ({"spec": {"replicas": 1, "labels": {"a": 1}}}, "1 is not of type 'string'"),
        ({"spec": {"replicas": 1, "pruned": {"a": 1}}}, "'a' was unexpected"),
        ({"spec": {"replicas": 1, "mode": "c"}}, "'c' is not valid under any"),
        ({"spec": {"replicas": 1, "memory": "5"}}, "'5' does not match"),
        ({"spec": {"replicas": 1, "memory": 0.5}}, "0.5 is not of type"),
        ({"spec": {"replicas": 1, "ports": [{"name": "a"}]}}, "'name' was unexpected"),
        ({"kind": "RayCluster"}, "'RayJob' was expected"),
        ({"metadata": {}}, "'name' is a required property"),
    ],
)
def test_a_definition_refuses_the_rest(changed: Any, expected: str) -> None:
    schema = schema_of(DEFINITION, "ray.io/v1")
    value = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}}
    found = problems(schema, {**value, "spec": {"replicas": 1}, **changed})
    assert any(expected in problem for problem in found), found


def test_a_definition_of_something_else_is_no_help() -> None:
    with pytest.raises(ValueError, match="expected batch/v1, got ray.io with v1"):
        schema_of(DEFINITION, "batch/v1")


# The run


def test_every_mount_has_its_volume_and_the_claim_is_made_beside_it(job: Any, claim: Any) -> None:
    for template in templates(job):
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        for container in containers(template):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()
        assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_entrypoint_is_a_command_of_ours_that_looks_at_the_nodes_first(job: Any) -> None:
    """It goes through a shell and `ray job submit`: plain words only."""
    from typer.testing import CliRunner

    from rlvid.launch.cli import app

    entrypoint = job["spec"]["entrypoint"]
    assert shlex.split(entrypoint)[:4] == ["python", "-m", "rlvid.launch.cli", "run"]
    assert "--doctor" in words(job)
    assert not set(entrypoint) & set("&|;<>$`'\"\n")
    options = [word for word in words(job) if word.startswith("--")]
    helped = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output
    assert all(option in helped for option in options)


def test_the_wheel_of_this_version_reaches_every_node(job: Any) -> None:
    """Who submits uploads it, so it waits for the file on the volume that it mounts."""
    [wheel] = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["py_modules"]
    assert Path(wheel).name == f"rlvid-{rlvid.__version__}-py3-none-any.whl"
    submitter = job["spec"]["submitterPodTemplate"]
    for container in containers(submitter):
        assert any(wheel.startswith(f"{m['mountPath']}/") for m in container["volumeMounts"])
    [waiting] = submitter["spec"]["initContainers"]
    assert f"test -f {wheel};" in waiting["command"][-1]
    # A Job takes no other, and a command of ours would stand in the place of KubeRay's.
    assert submitter["spec"]["restartPolicy"] in ("Never", "OnFailure")
    assert not {"command", "args"} & submitter["spec"]["containers"][0].keys()
    header = (ROOT / "launch" / "kuberay.yaml").read_text().partition("apiVersion")[0]
    assert header.count(Path(wheel).name) == 2


def test_ray_installs_the_wheel_without_what_it_depends_on(job: Any) -> None:
    """See `test_bare_wheel.py` for what Ray does without the variable."""
    *nodes, _ = templates(job)
    for [node] in map(containers, nodes):
        assert {"name": "PIP_NO_DEPS", "value": "1"} in node["env"]


def test_who_submits_has_the_image_of_the_head(job: Any) -> None:
    """Ray refuses to connect across versions."""
    images = {container["image"] for found in templates(job) for container in containers(found)}
    assert len(images) == 1


# Groups


def test_each_role_names_a_group_that_grows(job: Any) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    has_gpu = {}
    for group in cluster["workerGroupSpecs"]:
        [container] = group["template"]["spec"]["containers"]
        has_gpu[group["groupName"]] = "nvidia.com/gpu" in container["resources"]["limits"]
        assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
    assert has_gpu == {"rollout": True, "learner": True, "rewards": False}
    assert dict(named_groups(recipe_of(job))) == {
        "rollout.node_group": "rollout",
        "learner.node_group": "learner",
        "rewards.node_group": "rewards",
    }


def test_a_waiting_role_has_the_time_that_a_node_takes_to_come(job: Any) -> None:
    assert recipe_of(job).cluster.start_deadline_s > Recipe(name="a").cluster.start_deadline_s


def node_types(job: Any) -> Any:
    """Return the groups as Ray's autoscaler reads them: name to what a node of it has."""
    cluster = {"metadata": {"name": "a", "namespace": "b"}, "spec": job["spec"]["rayClusterSpec"]}
    config = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)
    return config["available_node_types"]


@pytest.mark.parametrize("role", ["rollout", "learner", "rewards"])
def test_the_autoscaler_grows_the_group_that_a_role_waits_for_and_no_other(
    job: Any, role: str
) -> None:
    """By Ray's own reading of the manifest, and its own choice: two processes, a node for each."""
    types = {
        name: NodeTypeConfig(
            name=name,
            min_worker_nodes=kind["min_workers"],
            max_worker_nodes=kind["max_workers"] or 1,
            resources=kind["resources"],
        )
        for name, kind in node_types(job).items()
    }
    group = dict(named_groups(recipe_of(job)))[f"{role}.node_group"]
    process = {"CPU": types[group].resources["CPU"], **share_of(group)}
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            max_num_nodes=20,
            resource_requests=ResourceRequestUtil.group_by_count(
                [ResourceRequestUtil.make(process)] * 2
            ),
        )
    )
    assert not reply.infeasible_resource_requests
    begun = {name: kind.min_worker_nodes for name, kind in types.items() if kind.min_worker_nodes}
    assert {one.instance_type: one.count for one in reply.to_launch} == {**begun, group: 2}


def test_every_group_is_named_by_a_role(job: Any) -> None:
    """A node of one that no role names would hold what has no group, and bring its own back."""
    offered = {
        name
        for kind in node_types(job).values()
        for name in kind["resources"]
        if name not in ("CPU", "GPU", "memory")
    }
    assert offered == {name for _, name in named_groups(recipe_of(job))}


def test_ray_start_gets_the_resource_through_the_shell(job: Any) -> None:
    """KubeRay writes `ray start --resources=VALUE` into a script of bash."""
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        [word] = shlex.split(group["rayStartParams"]["resources"])
        assert json.loads(word) == {group["groupName"]: 1000}
