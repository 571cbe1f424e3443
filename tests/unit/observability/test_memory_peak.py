"""What a process holds for itself: its own pages at most, not those of a store it has read."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from rlvid.observability.memory_peak import OwnPeak

peak = OwnPeak(Path("/proc/self"))
at = [peak.look()]
shared = SharedMemory(create=True, size=96 * 2**20)
shared.buf[::4096] = bytes(len(shared.buf[::4096]))  # all of its pages, as who reads an object
at.append(peak.look())
own = bytearray(160 * 2**20)
own[::4096] = bytes(len(own[::4096]))
del own
at += [peak.look(), peak.look()]
shared.close()
shared.unlink()
print(*at)
"""


def test_what_is_freed_again_counts_and_what_is_shared_does_not() -> None:
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True, timeout=120
    )
    start, shared, held, after = map(float, found.stdout.split())
    assert abs(shared - start) < 16
    assert 155 < held - start < 190
    assert after == held
