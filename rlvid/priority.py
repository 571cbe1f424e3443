"""Who goes first on busy cores: a process that works yields to one that starts.

Importing torch and diffusers takes seconds of one core. Where few cores are shared by everybody, an
actor that joins a run would get its small part of them, and be late by several times that. Who
starts does so at the niceness of the driver (`rlvid.launch.cluster`); what works yields to it, and
to whatever else the user runs on the machine. A process that uses a GPU keeps its place: the device
would wait for it, and its node has cores enough.
"""

from __future__ import annotations

import os

import torch

LOWEST = 19
"""The niceness at which a thread gets least, a seventieth of one at 0."""


def yield_to_starting() -> None:
    """Let everything else on the machine go before this thread, from now until it ends.

    Linux keeps a niceness for each thread, and threads that it starts inherit it. There is no way
    back: who is not root may only lower a priority.
    """
    if not torch.cuda.is_initialized():
        os.nice(LOWEST)  # the system cuts what goes beyond
