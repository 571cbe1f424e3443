"""Takes what a wheel depends on out of it: python launch/bare_wheel.py WHEEL

Ray has pip install a wheel of `py_modules` on every node, apart from what is installed there. What
rlvid depends on would come with it: a second torch and the rest, in other versions than the lock's,
or an error where no registry is reached. PIP_NO_DEPS=1 on the nodes spares that too, where they are
ours to start (kuberay.yaml). Standard library only, and no import of ours.
"""

from __future__ import annotations

import base64
import hashlib
import os
import sys
import zipfile
from pathlib import Path


def make_bare(wheel: Path) -> None:
    """Write the wheel anew without its Requires-Dist; whole, or not at all.

    Raises:
        ValueError: the file is no wheel.
    """
    with zipfile.ZipFile(wheel) as packed:
        files = {info: packed.read(info) for info in packed.infolist()}
    found = [info for info in files if info.filename.endswith(".dist-info/METADATA")]
    if len(found) != 1:
        raise ValueError(f"{wheel}: expected a wheel, with one METADATA, got {len(found)} of them")
    [metadata] = found
    record = metadata.filename.removesuffix("METADATA") + "RECORD"
    header, blank, text = files[metadata].partition(b"\n\n")
    kept = [line for line in header.splitlines() if not line.startswith(b"Requires-Dist:")]
    files[metadata] = b"\n".join(kept) + blank + text
    temporary = wheel.with_suffix(".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as packed:
        for info, data in files.items():
            if info.filename == record:
                data = recorded(data, metadata.filename, files[metadata])
            packed.writestr(info, data)
    os.replace(temporary, wheel)


def recorded(record: bytes, name: str, data: bytes) -> bytes:
    """Return the RECORD with digest and size of the file of that name (PEP 376, PEP 427)."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    line = b"%s,sha256=%s,%d" % (name.encode(), digest, len(data))
    own = name.encode() + b","
    lines = [line if one.startswith(own) else one for one in record.splitlines()]
    return b"\n".join(lines) + b"\n"


if __name__ == "__main__":
    make_bare(Path(sys.argv[1]))
