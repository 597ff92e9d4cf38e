"""How much memory this process has taken."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_mb() -> float | None:
    """The most resident memory that this process held so far, in MB of 2^20 bytes; None where the system keeps no record.

    Linux keeps it in VmHWM; ru_maxrss, which other systems have, begins there at what the parent process held.
    """
    try:
        status = Path("/proc/self/status").read_bytes()                     # the process's name in it may be anything
        return int(status.split(b"VmHWM:")[1].split()[0]) / 1024            # kB
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:                         # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
