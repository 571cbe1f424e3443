"""Compiles DeepSpeed's shared-memory operator (deepspeed_shm_comm) where it will be needed.

Only a machine without CUDA uses it. The result is kept by torch (TORCH_EXTENSIONS_DIR), so a
second call returns at once.
"""

import os
import socket
import sys
import time
from pathlib import Path

NAME = "deepspeed_shm_comm"


def main() -> None:
    import torch
    from torch.utils.cpp_extension import _get_build_directory

    if torch.cuda.is_available():
        print("[install] CUDA found: DeepSpeed needs no operator compiled")
        return
    built = Path(_get_build_directory(NAME, verbose=False)) / f"{NAME}.so"
    if built.is_file():
        print(f"[install] DeepSpeed's operator is compiled: {built}")
        return
    print("[install] compiling DeepSpeed's operator (about a minute) ...", flush=True)
    started = time.monotonic()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(
        DS_ACCELERATOR="cpu",
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)
    torch.distributed.destroy_process_group()
    if not built.is_file():
        sys.exit(f"build_operators: {built} was not made; see the compiler's output above")
    print(f"[install] compiled in {time.monotonic() - started:.0f} s: {built}")


if __name__ == "__main__":
    main()
