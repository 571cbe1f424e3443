"""Has every Python process of a run import rlvid from the wheel that this file was copied beside.

Launchers copy it to `sitecustomize.py` in the folder of the wheel's files, which PYTHONPATH names.
That variable alone does not do it: `python -m`, and Ray in its workers, put the driver's current
folder before it, which may hold a checkout. Python imports this file when it starts, before either.
All else is found where it was, a plugin in the current folder for one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.machinery import PathFinder


def import_from(folder: str) -> None:
    """Import the rlvid of `folder`, whatever comes before it on the path."""
    sys.path.insert(0, folder)
    try:
        importlib.import_module("rlvid")
    finally:
        sys.path.remove(folder)  # the first; that of PYTHONPATH stays, for its child processes


def run_the_sites_own(folder: str) -> None:
    """Run the sitecustomize that the one in `folder` hides, where there is one."""
    others = [path for path in sys.path if path != folder]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if __name__ == "sitecustomize":
    here = os.path.dirname(os.path.abspath(__file__))
    import_from(here)
    run_the_sites_own(here)
