"""`rlvid doctor`: is this machine able to run rlvid, and if not, what is missing.

Each check is a function that returns what it found or raises; the table shows all of them, so one
broken part does not hide the next.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from rlvid.launch.doctor_machine import (
    check_gpu_health,
    check_limits,
    check_ports,
    check_shared_memory,
)
from rlvid.launch.finding import Check, Finding, Note, run_check

if TYPE_CHECKING:
    from rich.table import Table

PACKAGES = {
    "torch": "torch", "diffusers": "diffusers", "transformers": "transformers", "peft": "peft",
    "accelerate": "accelerate", "deepspeed": "deepspeed", "ray": "ray", "numpy": "numpy",
    "safetensors": "safetensors", "msgpack": "msgpack", "xxhash": "xxhash", "pydantic": "pydantic",
    "PyYAML": "yaml", "opencv-python-headless": "cv2", "pymunk": "pymunk", "av": "av",
    "jinja2": "jinja2", "tensorboard": "tensorboard", "tenacity": "tenacity", "ftfy": "ftfy",
}  # fmt: skip
"""Distribution to module, for everything a run imports."""

NEEDED_DISK_GB = 5.0
RAY_START_DEADLINE_S = 120


def check_python() -> str:
    """Python itself."""
    return f"{platform.python_version()} at {sys.executable}"


def check_rlvid() -> str:
    """Where rlvid was imported from."""
    import rlvid

    return f"{rlvid.__version__} at {Path(rlvid.__file__).parent}"


def check_torch() -> str:
    """The torch build and its threads."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return f"{torch.__version__}, {build}, {torch.get_num_threads()} threads"


def check_gpu() -> str | Note:
    """GPUs; a machine without one is fine for the tiny model."""
    import torch

    count = torch.cuda.device_count()
    if not count:
        return Note("none: the tiny model runs on the CPU, larger ones need a GPU")
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
    return f"{count}: {names}"


def check_torchvision() -> str:
    """torchvision imports beside this torch; vLLM's and transformers' video processors need it."""
    import torchvision

    return f"{torchvision.__version__} imports"


def check_vllm() -> str | Note:
    """vLLM, which serves VLM judges; recipes without one do not need it."""
    try:
        return f"{version('vllm')} installed"
    except PackageNotFoundError:
        return Note("not installed: needed for VLM judges, pip install 'rlvid[judge-cpu]'")


def check_ray() -> str:
    """Ray starts and runs a task."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    ray.init(
        num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False,
        logging_level="error",
    )  # fmt: skip
    try:
        answer = ray.get(ray.remote(_forty_two).remote(), timeout=RAY_START_DEADLINE_S)
        return f"{ray.__version__} started and answered {answer}"
    finally:
        ray.shutdown()


def _forty_two() -> int:
    return 42


def check_h264() -> str:
    """Clips can be written as H.264."""
    import torch

    from rlvid.observability.clips import encode_mp4

    return f"a clip of {len(encode_mp4(torch.zeros(2, 3, 32, 32), 8))} bytes"


def check_model() -> str:
    """The tiny model that ships with rlvid."""
    from rlvid.config import LearnerConfig, ModelConfig
    from rlvid.launch.model_size import read_model_size

    size = read_model_size(ModelConfig(), LearnerConfig())
    return f"tiny: {size.transformer_parameters:,} transformer parameters"


def check_cores() -> str | Note:
    """Cores and threads; two busy-waiting processes on two cores are ten times slower."""
    cores = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    if cores <= 4 and threads != "1":
        return Note(
            f"{cores} cores, OMP_NUM_THREADS {threads}; export OMP_NUM_THREADS=1 on small "
            "machines (the roles of a run set it for themselves)"
        )
    return f"{cores} cores, OMP_NUM_THREADS {threads}"


def check_disk() -> str:
    """Room for a run folder here and for Ray's files in the temporary folder."""
    free = {
        name: shutil.disk_usage(name).free / 1e9 for name in (os.getcwd(), tempfile.gettempdir())
    }
    text = ", ".join(f"{gigabytes:.0f} GB free in {name}" for name, gigabytes in free.items())
    if min(free.values()) < NEEDED_DISK_GB:
        raise ValueError(f"{text}; a run needs {NEEDED_DISK_GB:.0f} GB")
    return text


CHECKS: dict[str, Check] = {
    "python": check_python,
    "rlvid": check_rlvid,
    "torch": check_torch,
    "gpu": check_gpu,
    "torchvision": check_torchvision,
    "vllm": check_vllm,
    "ray": check_ray,
    "h264": check_h264,
    "model": check_model,
    "cores": check_cores,
    "disk": check_disk,
    "limits": check_limits,
    "shared memory": check_shared_memory,
    "ports": check_ports,
    "gpu health": check_gpu_health,
}


def examine(checks: Mapping[str, Check] = CHECKS) -> Iterator[Finding]:
    """Yield a finding a check, then one a package."""
    for name, check in checks.items():
        yield run_check(name, check)
    for distribution, module in PACKAGES.items():
        yield check_package(distribution, module)


def check_package(distribution: str, module: str) -> Finding:
    """Return whether the package imports, and its version."""
    try:
        found = version(distribution)
    except PackageNotFoundError:
        text = f"not installed; pip install {distribution} (or bash launch/environment/install.sh)"
        return Finding(check=f"package {distribution}", state="broken", text=text)

    def import_it() -> str:
        importlib.import_module(module)
        return found

    return run_check(f"package {distribution}", import_it)


def render(findings: list[Finding]) -> Table:
    """Return the findings as a table."""
    from rich.markup import escape
    from rich.table import Table

    colours = {"ok": "green", "note": "yellow", "broken": "bold red"}
    table = Table(title="rlvid doctor", title_justify="left")
    for heading in ("check", "state", "what was found"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        colour = colours[finding.state]
        table.add_row(finding.check, f"[{colour}]{finding.state}[/]", escape(finding.text))
    return table
