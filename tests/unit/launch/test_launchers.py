"""What the launch scripts do with a run that makes room; stand-ins for their commands on PATH.

What unpacks the wheel and imports it is real; the wheel is of a checkout that says what it is.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[3] / "launch"
ROLES = ("actors", "configs", "launch", "learners", "rewards")
COMMANDS = {
    "srun": """
said="${*//$'\\n'/ }"
echo "$said" >> "$FOLDER/steps"
case "$said" in *"hostname --all"*) echo 10.0.0.1 10.0.0.2; exit;; esac
trap 'exit 143' TERM  # a step that is asked to end is not asked to drain
while [[ "$1" == --* ]]; do shift; done
if [ "$1" != ray ]; then "$@" <&0 & wait $!; fi
""",
    "scontrol": """
case "$1 $2" in
  "show hostnames") echo node1;;
  "show job") echo "JobState=${STATE:-RUNNING}";;
  *) echo "$@" >> "$FOLDER/requeued";;
esac
""",
    # A token, what a job's driver ended with, and pip.
    "python": """
case "$*" in
  "-c import secrets"*) echo secret;;
  "- "*) echo "$JOB_STATUS";;
  "-m pip wheel "*)
    echo $$ > "$FOLDER/builder"
    echo built >> "$FOLDER/built"
    if [ -n "${BUILD_S:-}" ]; then trap 'kill $!; exit' TERM; sleep "$BUILD_S" & wait; fi
    while [ "$1" != --wheel-dir ]; do shift; done
    cd "$3" && "$REAL_PYTHON" -c "$PACK" "$2/rlvid-0-py3-none-any.whl";;
  *) exec "$REAL_PYTHON" "$@";;
esac
""",
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
PACK = """
import sys, zipfile

with zipfile.ZipFile(sys.argv[1], "w") as wheel:
    for name in ("__init__", "launch/__init__", "launch/cli", "launch/wheel_first"):
        wheel.write(f"rlvid/{name}.py")
    for name in ("METADATA", "RECORD"):
        wheel.writestr(f"rlvid-0.dist-info/{name}", "")
"""
COMMAND_LINE = """
import os, sys

import rlvid

with open(os.environ["FOLDER"] + "/code", "a") as code:
    code.write(f"{rlvid.NAME} {rlvid.__file__}\\n")
os.execvp("rlvid", ["rlvid", *sys.argv[1:]])
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The launchers' files, and a rlvid that tells its name and runs the stand-in."""
    folder = tmp_path / "checkout"
    for name in (*ROLES, "rlvid"):
        (folder / name).mkdir(parents=True)
    (folder / "rlvid/launch").symlink_to("../launch")
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py", "launch/__init__.py"):
        (folder / name).touch()
    for name in ("wheel.sh", "bare_wheel.py", "wheel_first.py"):
        (folder / "launch" / name).write_bytes((LAUNCH / name).read_bytes())
    (folder / "launch/cli.py").write_text(COMMAND_LINE)
    name_it(folder, "first")
    return folder


def name_it(checkout: Path, name: str) -> None:
    (checkout / "rlvid/__init__.py").write_text(f"NAME = {name!r}\n")


@pytest.fixture
def environment(tmp_path: Path, checkout: Path) -> dict[str, str]:
    """A PATH with the stand-ins before all else."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, code in COMMANDS.items():
        script = tools / name
        script.write_text(f"#!/bin/bash\n{code}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").touch()
    node_tmp = tmp_path / "node"
    node_tmp.mkdir()
    return {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "REAL_PYTHON": sys.executable,
        "PACK": PACK,
        "FOLDER": str(tmp_path),
        "RLVID_VENV": str(tmp_path / "venv"),
        "RLVID_NODE_TMP": str(node_tmp),
        "SLURM_SUBMIT_DIR": str(checkout),
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


def until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20.0
    while not holds():
        assert time.monotonic() < give_up, "it did not come true in 20 s"
        time.sleep(0.05)


def until_there(path: Path) -> None:
    """Wait for what the driver writes when it starts, and until it listens."""
    until(lambda: bool(lines(path)))
    time.sleep(0.3)


def is_clear(environment: dict[str, str]) -> bool:
    """Whether nothing is left on the node."""
    return not list(Path(environment["RLVID_NODE_TMP"]).iterdir())


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
    hold, address, ray = lines(tmp_path / "steps")
    assert "slurm-77.wheel" in hold
    assert [step.split()[-1] for step in (address, ray)] == ["--all-ip-addresses", "--block"]
    assert not any("container" in step for step in (hold, address, ray))


def test_slurm_with_an_image_builds_the_wheel_and_runs_ray_doctor_and_driver_in_it(
    environment: dict[str, str], tmp_path: Path, checkout: Path
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
    steps = lines(tmp_path / "steps")
    inside = [step for step in steps if "hostname --all" not in step]
    assert len(steps) - len(inside) == 1
    folder = checkout.resolve()
    wanted = (
        "--container-image=registry#org/rlvid:1 "
        f"--container-mounts={folder}:{folder},/tmp:/tmp,/models:/models "
        f"--container-workdir={folder} "
    )
    ran = [step.partition(wanted)[2] for step in inside]
    assert sorted(" ".join(step.split()[:4]) for step in ran if not step.startswith("ray")) == [
        'bash -c wheel="$1" code="$2"',
        f"bash launch/wheel.sh runs/slurm-{os.getpid()}.wheel",
        "python -m rlvid.launch.cli doctor",
        "python -m rlvid.launch.cli run",
    ]
    assert len([step for step in ran if step.startswith("ray start ")]) == 1


@pytest.mark.parametrize("status", [0, 1, 2])
def test_slurm_does_not_queue_again_what_ended_otherwise(
    environment: dict[str, str], tmp_path: Path, status: int
) -> None:
    job = slurm({**environment, "STATUS": str(status)}, "my", "--run-folder", "mine")
    assert job.wait(timeout=20.0) == status
    assert not (tmp_path / "requeued").exists()
    assert lines(tmp_path / "ran")[0].count("--run-folder") == 1


def test_slurm_runs_the_wheel_of_the_first_start_whatever_becomes_of_the_checkout(
    environment: dict[str, str], tmp_path: Path, checkout: Path
) -> None:
    """Doctor and driver of two attempts; the current folder is the edited checkout."""
    assert slurm({**environment, "STATUS": "75"}, "my").wait(timeout=20.0) == 75
    name_it(checkout, "second")
    (checkout / "launch/wheel.sh").unlink()
    again = {**environment, "SLURM_RESTART_COUNT": "1"}
    assert slurm(again, "my").wait(timeout=20.0) == 0
    assert lines(tmp_path / "built") == ["built"]
    ran = [line.split() for line in lines(tmp_path / "code")]
    assert [name for name, _ in ran] == ["first"] * 4
    node = environment["RLVID_NODE_TMP"]
    assert all(file.startswith(f"{node}/rlvid-77-") for _, file in ran)
    until(lambda: is_clear(environment))


def test_slurm_takes_no_wheel_of_another_job_that_had_its_number(
    environment: dict[str, str], tmp_path: Path, checkout: Path
) -> None:
    assert slurm(environment, "my").wait(timeout=20.0) == 0
    name_it(checkout, "second")
    assert slurm(environment, "my").wait(timeout=20.0) == 0
    assert [line.split()[0] for line in lines(tmp_path / "code")] == ["first"] * 2 + ["second"] * 2


def test_slurm_that_is_told_to_make_room_before_there_is_a_wheel_leaves_no_half_of_one(
    environment: dict[str, str], tmp_path: Path, checkout: Path
) -> None:
    job = slurm({**environment, "BUILD_S": "300"}, "my")
    until(lambda: bool(lines(tmp_path / "built")))
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20.0) == 75
    os.kill(int((tmp_path / "builder").read_text()), signal.SIGTERM)  # as Slurm ends it
    assert lines(tmp_path / "requeued") == ["requeue 77"]
    assert not (tmp_path / "steps").exists()
    assert not (checkout / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PACK": "raise SystemExit('no disk')"}, "slurm.sbatch: no wheel of the code in "),
        ({"RLVID_NODE_TMP": "/nowhere"}, "slurm.sbatch: not every one of node1 took the wheel"),
    ],
)
def test_slurm_starts_no_ray_without_the_wheel_on_every_node(
    environment: dict[str, str], tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    done = subprocess.run(
        ["bash", str(LAUNCH / "slurm.sbatch"), "my"],
        env={**environment, **changes}, timeout=30.0, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert message in done.stderr
    assert not any("ray start" in step for step in lines(tmp_path / "steps"))
    assert not (tmp_path / "requeued").exists()


def test_slurm_does_not_queue_a_cancelled_job_again(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """`scancel` sends the signal of a job that shall make room, and the driver drains."""
    job = slurm({**environment, "TURNS": "300", "STATE": "CANCELLED"}, "my")
    until_there(tmp_path / "ran")
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20.0) == 75
    assert not (tmp_path / "requeued").exists()


def test_a_wheel_is_of_the_code_that_is_there_and_leaves_no_trace(tmp_path: Path) -> None:
    """Setuptools would add what build/ holds of a module that is gone, and write there."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (*ROLES, "rlvid", "LICENSE", "README.md", "pyproject.toml", "setup.py"):
        source = LAUNCH.parent / name
        if source.is_dir():
            shutil.copytree(source, copy / name, symlinks=True)
        else:
            shutil.copy(source, copy)
    gone = copy / "build/lib/rlvid/gone.py"
    gone.parent.mkdir(parents=True)
    gone.touch()
    git = ["git", "-C", str(copy), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "first"], check=True)
    commit = subprocess.run(
        [*git, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, text=True
    ).stdout
    before = sorted(path.name for path in copy.iterdir())
    subprocess.run(
        ["bash", str(copy / "launch/wheel.sh"), str(tmp_path / "ship")], check=True, timeout=120.0,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    [wheel] = (tmp_path / "ship").iterdir()
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        assert packed.read("rlvid/launch/built_from.txt").decode() == commit
    assert {"rlvid/__init__.py", "rlvid/launch/cli.py", "rlvid/launch/wheel_first.py"} <= names
    assert "rlvid/gone.py" not in names
    assert sorted(path.name for path in copy.iterdir()) == before


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
    variables = {variable["name"]: variable["value"] for variable in head["env"]}
    assert f"touch {variables['RLVID_PREEMPTION_FILE']};" in script
    sleep_s = float(script.rpartition("sleep ")[2])
    assert ClusterConfig().grace_s < sleep_s < pod["terminationGracePeriodSeconds"]
