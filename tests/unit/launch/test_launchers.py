"""What the launch scripts do with a run that makes room; stand-ins for their commands on PATH."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[3] / "launch"
COMMANDS = {
    "srun": """
echo "$*" >> "$FOLDER/steps"
case "$*" in *hostname*) echo 10.0.0.1 10.0.0.2; exit;; esac
trap 'exit 143' TERM  # a step that is asked to end is not asked to drain
while [[ "$1" == --* ]]; do shift; done
if [ "$1" = rlvid ]; then "$@" & wait $!; fi
""",
    "scontrol": 'if [ "$1" = show ]; then echo node1; else echo "$@" >> "$FOLDER/requeued"; fi',
    # A token, what a job's driver ended with, and pip.
    "python": 'case "$1" in -c) echo secret;; -) echo "$JOB_STATUS";; esac',
    "ray": '[ "$1" = start ] || echo "$@" >> "$FOLDER/submitted"',
    "rlvid": """
if [ "$1" = doctor ]; then
  echo "$@ $RAY_AUTH_MODE $RAY_AUTH_TOKEN" >> "$FOLDER/doctor"
  exit "${DOCTOR:-0}"
fi
echo "$@" >> "$FOLDER/ran"
trap 'sleep 0.2; exit 75' TERM
for _ in $(seq "${TURNS:-1}"); do
  sleep 0.1
  [ ! -e "${RLVID_PREEMPTION_FILE:-/nowhere}" ] || exit 75
done
exit "${STATUS:-0}"
""",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A PATH with the stand-ins before all else."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, code in COMMANDS.items():
        script = tools / name
        script.write_text(f"#!/bin/bash\n{code}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").touch()
    return {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "FOLDER": str(tmp_path),
        "RLVID_VENV": str(tmp_path / "venv"),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_JOB_ID": "77",
        "SLURM_CPUS_PER_TASK": "4",
        "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265",
        "RLVID_PAUSE_S": "0",
    }


def slurm(environment: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["bash", str(LAUNCH / "slurm.sbatch"), *arguments], env=environment)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def until_there(path: Path) -> None:
    """Wait for what the driver writes when it starts, and until it listens."""
    give_up = time.monotonic() + 20.0
    while not lines(path) and time.monotonic() < give_up:
        time.sleep(0.05)
    time.sleep(0.3)


def test_slurm_passes_the_signal_on_waits_for_the_drain_and_queues_again(
    environment: dict[str, str], tmp_path: Path
) -> None:
    job = slurm({**environment, "TURNS": "300"}, "my", "seed=1")
    until_there(tmp_path / "ran")
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20.0) == 75
    assert lines(tmp_path / "requeued") == ["requeue 77"]
    [ran] = lines(tmp_path / "ran")
    assert ran.startswith("run my seed=1 --run-folder runs/slurm-77 --resume-if-exists --restarts")


def test_slurm_has_the_doctor_look_at_all_nodes_of_a_cluster_with_a_token(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """The head's first address, which is not its loopback; the token in no command line."""
    job = slurm({**environment, "DOCTOR": "1"}, "my")
    assert job.wait(timeout=20.0) == 1
    [doctor] = lines(tmp_path / "doctor")
    said, _, token = doctor.rpartition(" ")
    assert said == "doctor --cluster 10.0.0.1:20077 --nodes 1 token"
    assert len(bytes.fromhex(token)) == 32
    assert not (tmp_path / "ran").exists()
    assert token not in (tmp_path / "steps").read_text()


def test_slurm_without_an_image_has_no_container(
    environment: dict[str, str], tmp_path: Path
) -> None:
    assert slurm(environment, "my").wait(timeout=20.0) == 0
    steps = lines(tmp_path / "steps")
    assert [step.split()[-1] for step in steps] == ["--all-ip-addresses", "--block"]
    assert not any("container" in step for step in steps)


def test_slurm_with_an_image_runs_ray_doctor_and_driver_in_it(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Steps see each other's Ray in /tmp; the driver is told by a file: srun would kill it."""
    job = slurm(
        {
            **environment,
            "RLVID_CONTAINER": "registry#org/rlvid:1",
            "RLVID_CONTAINER_MOUNTS": "/models:/models",
            "RLVID_VENV": "/nowhere",
            "SLURM_JOB_ID": str(os.getpid()),
            "TURNS": "300",
        },
        "my",
        "seed=1",
    )
    until_there(tmp_path / "ran")
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20.0) == 75
    assert lines(tmp_path / "requeued") == [f"requeue {os.getpid()}"]
    assert not Path(f"/tmp/rlvid-make-room-{os.getpid()}").exists()
    address, *inside = lines(tmp_path / "steps")
    assert "container" not in address
    folder = tmp_path.resolve()
    wanted = (
        "--container-image=registry#org/rlvid:1 "
        f"--container-mounts={folder}:{folder},/tmp:/tmp,/models:/models "
        f"--container-workdir={folder} "
    )
    ran = [step.partition(wanted)[2] for step in inside]
    assert sorted(" ".join(step.split()[:2]) for step in ran) == [
        "ray start", "rlvid doctor", "rlvid run",
    ]  # fmt: skip


@pytest.mark.parametrize("status", [0, 1, 2])
def test_slurm_does_not_queue_again_what_ended_otherwise(
    environment: dict[str, str], tmp_path: Path, status: int
) -> None:
    job = slurm({**environment, "STATUS": str(status)}, "my", "--run-folder", "mine")
    assert job.wait(timeout=20.0) == status
    assert not (tmp_path / "requeued").exists()
    assert lines(tmp_path / "ran")[0].count("--run-folder") == 1


@pytest.mark.parametrize(
    ("told", "status", "num_jobs"), [("75", 75, 3), ("lost", 75, 3), ("0", 0, 1), ("2", 2, 1)]
)
def test_a_ray_job_that_made_room_is_submitted_again(
    environment: dict[str, str], tmp_path: Path, told: str, status: int, num_jobs: int
) -> None:
    done = subprocess.run(
        ["bash", str(LAUNCH / "ray_job.sh"), "my", "--run-folder", "shared"],
        env={**environment, "JOB_STATUS": told, "RLVID_ATTEMPTS": "3"},
        timeout=30.0,
        check=False,
    )
    assert done.returncode == status
    jobs = lines(tmp_path / "submitted")
    assert len(jobs) == num_jobs
    assert all("--run-folder shared --resume-if-exists" in job for job in jobs)
    assert all("--doctor" in job for job in jobs)
    assert len({job.split()[3] for job in jobs}) == num_jobs  # an id of its own each


def test_a_ray_job_needs_a_folder_to_go_on_in(environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", str(LAUNCH / "ray_job.sh"), "my"], env=environment, timeout=30.0, check=False
    )
    assert done.returncode == 2


def test_kubernetes_gives_the_drain_its_time() -> None:
    """The pod's grace period is above the hook's sleep, and that above the recipe's grace_s."""
    from rlvid.config.cluster import ClusterConfig

    _, job = yaml.safe_load_all((LAUNCH / "kuberay.yaml").read_text())
    assert job["spec"]["backoffLimit"] > 0
    assert "--resume-if-exists" in job["spec"]["entrypoint"]
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    [head] = pod["containers"]
    script = head["lifecycle"]["preStop"]["exec"]["command"][-1]
    [variable] = head["env"]
    assert variable["name"] == "RLVID_PREEMPTION_FILE"
    assert f"touch {variable['value']};" in script
    sleep_s = float(script.rpartition("sleep ")[2])
    assert ClusterConfig().grace_s < sleep_s < pod["terminationGracePeriodSeconds"]
