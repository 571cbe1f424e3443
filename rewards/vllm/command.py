"""From an entry of `rewards.servers` to the command and environment of one `vllm` process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import xxhash

from rlvid.config.rewards import ServerConfig
from rlvid.rewards.isolation.scorer import PASSED_ON as CHILD_PASSED_ON

NO_DOMAIN = "no-media-from-urls.invalid"
"""The only host media may come from. RFC 2606 reserves .invalid, so it never exists; data: URLs,
which carry the bytes themselves, are not subject to it."""
LEAST_KV_CACHE_BYTES = 64 * 2**20
"""Enough for 32 clips of the embedded judge."""
KV_CACHE_CONTEXTS = 2
"""Requests of full length that fit into the cache of a larger model on a CPU."""
FRONT = Path(__file__).with_name("front")
KEY_CHECK = "rlvid_require_key.RequireKey"
"""In `FRONT`: asks for the key on every path, where vLLM leaves some open."""
INTERPRETER_S = 60.0
WHOLE_FILE_BYTES = 64 * 2**20
NUM_SAMPLES = 64
SAMPLE_BYTES = 65_536
OWN_PACKAGES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Where this interpreter finds its packages; another one must not see them."""
PASSED_ON = (
    *CHILD_PASSED_ON, "LOGNAME", "LD_PRELOAD", "LIBRARY_PATH", "CC", "CXX", "SSL_CERT_DIR",
)  # fmt: skip
PASSED_PREFIXES = (
    "VLLM_", "CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "OMP_", "KMP_", "MKL_", "TORCH", "PYTORCH_",
    "TRITON_", "HIP_", "ROCR_",
)  # fmt: skip
"""Variables the server gets, and beginnings of such; others it does not, since it runs code that
came with vLLM and a model. `ServerConfig.env` adds to them."""
SECRET_ENDINGS = ("_KEY", "_KEY_ID", "_TOKEN", "_SECRET", "_PASSWORD", "_CREDENTIALS")
"""Not passed on whatever they begin with: VLLM_API_KEY of the shell is somebody else's."""


def server_folder(config: ServerConfig) -> Path:
    """Return the model folder of an entry; "tiny_judge" is the one that ships."""
    if config.model == "tiny_judge":
        from rlvid.models.tiny import vlm_judge_folder

        return vlm_judge_folder()
    return Path(config.model).expanduser().resolve()


def check_folder(config: ServerConfig, *, where: str) -> None:
    """Raise ValueError unless the model folder is there."""
    folder = server_folder(config)
    if not (folder / "config.json").is_file():
        found = "a folder without it" if folder.is_dir() else "no folder"
        raise ValueError(
            f"{where}.model: no model at {str(folder)!r}: expected a folder with config.json, got "
            f"{found}. Download the model into a folder and give its path, or 'tiny_judge'; "
            "nothing is fetched from a hub."
        )


def check_launch(config: ServerConfig, *, where: str) -> None:
    """Find what would fail a minute later.

    Raises:
        ValueError: no model folder, no interpreter, or no vLLM in it.
    """
    check_folder(config, where=where)
    if config.num_gpus != int(config.num_gpus):
        raise ValueError(
            f"{where}.num_gpus: expected whole devices, got {config.num_gpus:g}. vLLM takes a "
            "share of one by engine_args.gpu_memory_utilization."
        )
    check_interpreter(config.python or sys.executable, where)


@lru_cache(maxsize=16)
def check_interpreter(python: str, where: str) -> None:
    """Raise ValueError, which names `where`, unless the interpreter runs and has vLLM."""
    code = "import importlib.util as u, sys; sys.exit(0 if u.find_spec('vllm') else 3)"
    try:
        answer = subprocess.run(
            [python, "-c", code], timeout=INTERPRETER_S, check=False, capture_output=True, text=True
        )
    except OSError as error:
        raise ValueError(
            f"{where}.python: cannot run {python!r} ({error.strerror}). Give the path of the "
            "interpreter of an environment that has vLLM."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"{where}.python: {python!r} did not say within {INTERPRETER_S:g} s whether it has "
            "vLLM. See whether its disk answers, and start again."
        ) from error
    if answer.returncode == 3:
        raise ValueError(
            f"{where}.python: {python!r} has no vllm. Install the extra judge-cuda or judge-cpu "
            "there, or name another interpreter."
        )
    if answer.returncode:
        raise ValueError(f"{where}.python: {python!r} does not run: {answer.stderr.strip()[-500:]}")


def server_command(config: ServerConfig, *, name: str, host: str, port: int) -> list[str]:
    """Return the command line; the API key is not on it, since everybody can read those."""
    arguments: dict[str, Any] = {
        "model": str(server_folder(config)),
        "served_model_name": name,
        "host": host,
        "port": port,
        # fp16 and bf16 have no fast path on most CPUs, and float32 makes scores comparable.
        "dtype": "float32" if _is_cpu(config) and config.dtype == "auto" else config.dtype,
        "max_model_len": config.max_model_len,
        "limit_mm_per_prompt": {"image": config.max_images, "video": config.max_videos},
        # Without it a small model answers a JSON request with spaces until max_tokens.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "allowed_media_domains": NO_DOMAIN,
        "disable_uvicorn_access_log": True,
        "middleware": KEY_CHECK,
        # Else a model's own generation_config sets temperature and top_p where a request is silent.
        "generation_config": "vllm",
    }
    if config.clip_fps is not None:
        arguments["media_io_kwargs"] = {"video": {"fps": config.clip_fps}}
    if _is_cpu(config):
        arguments |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": cpu_kv_cache_bytes(config),
            "max_num_seqs": 32,
        }
    elif config.num_gpus > 1:
        arguments["tensor_parallel_size"] = int(config.num_gpus)
    arguments |= config.engine_args
    python = config.python or sys.executable
    return [python, "-m", "vllm.entrypoints.openai.api_server", *_flags(arguments)]


def cpu_kv_cache_bytes(config: ServerConfig) -> int:
    """Return a size of the key-value cache on a CPU; without one vLLM takes a share of the RAM.

    A token takes 2 * layers * key-value heads * head size * 4 bytes.
    """
    values = json.loads((server_folder(config) / "config.json").read_text())
    text = values.get("text_config", values)
    heads = text.get("num_attention_heads", 0)
    size = text.get("head_dim") or text.get("hidden_size", 0) // max(1, heads)
    kv_heads = text.get("num_key_value_heads", heads)
    token = int(2 * text.get("num_hidden_layers", 0) * kv_heads * size * 4)
    return max(LEAST_KV_CACHE_BYTES, KV_CACHE_CONTEXTS * config.max_model_len * token)


def _flags(arguments: Mapping[str, Any]) -> list[str]:
    """{max_num_seqs: 4, enforce_eager: true} -> --max-num-seqs 4 --enforce-eager."""
    flags: list[str] = []
    for key, value in arguments.items():
        flag = "--" + key.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value is False:
            flags.append("--no-" + flag.removeprefix("--"))
        elif isinstance(value, Mapping):
            flags += [flag, json.dumps(dict(value))]
        elif isinstance(value, list | tuple):
            flags += [flag, *(str(item) for item in value)]
        elif value is not None:
            flags += [flag, str(value)]
    return flags


def server_environment(
    config: ServerConfig, api_key: str, inherited: Mapping[str, str]
) -> dict[str, str]:
    """Return the server's variables: a few of ours, offline, the entry's, and its own key."""
    names = PASSED_ON if config.python else PASSED_ON + OWN_PACKAGES
    env = {k: v for k, v in inherited.items() if k in names or _is_passed(k)}
    paths = [str(FRONT), env.get("PYTHONPATH", "")]
    env |= {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if _is_cpu(config):
        # vLLM would bind every server to core 0; two of them, or a trainer beside it, then crawl.
        env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        env["OMP_NUM_THREADS"] = str(max(1, int(config.num_cpus)))
    # The key comes last: the pool's clients know no other.
    return {**env, **config.env, "VLLM_API_KEY": api_key}


def _is_passed(name: str) -> bool:
    return name.startswith(PASSED_PREFIXES) and not name.endswith(SECRET_ENDINGS)


def model_digest(folder: Path) -> str:
    """Return 16 hex digits over the names, sizes and contents of the files of a model folder.

    Of files above 64 MB, 64 pieces at even distances stand for the content: enough to tell two
    checkpoints apart, in seconds for any size.
    """
    digest = xxhash.xxh3_64()
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            if size <= WHOLE_FILE_BYTES:
                digest.update(stream.read())
                continue
            for number in range(NUM_SAMPLES):
                stream.seek(number * (size - SAMPLE_BYTES) // (NUM_SAMPLES - 1))
                digest.update(stream.read(SAMPLE_BYTES))
    return str(digest.hexdigest())


def _is_cpu(config: ServerConfig) -> bool:
    return config.num_gpus == 0
