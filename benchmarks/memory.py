"""The memory that a benchmark took."""

from __future__ import annotations

import sys


def process_peak() -> int | None:
    """Bytes at the highest point of this process since it began; None where there is no such account."""
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
