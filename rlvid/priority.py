"""Who goes first on busy cores: a process that works yields to one that starts.

Importing torch and diffusers takes seconds of one core. Where few cores are shared by everybody, an
actor that joins a run would get its small part of them, and be late by several times that. Both
yield to whatever else the user runs on the machine.
"""

from __future__ import annotations

import os

LOWEST = 19
"""The niceness at which a thread gets least: four tenths of one at 15, where Ray starts workers."""


def yield_to_starting() -> None:
    """Let everything else on the machine go before this thread, from now until it ends.

    Linux keeps a niceness for each thread, and threads that it starts inherit it. There is no way
    back: who is not root may only lower a priority.
    """
    os.nice(LOWEST)  # the system cuts what goes beyond
