"""Peak memory of a benchmark."""

from __future__ import annotations

import sys


def process_peak() -> int | None:
    """Return the peak memory of this process in bytes; None where the system does not record it."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
