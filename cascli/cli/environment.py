"""The environment variables that cascli reads, and a notice about unknown ones with its prefix."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping

from cascli.errors import plain, suggestion

PREFIX = "CASCLI_"
OWN = {
    "CASCLI_CONFIG": "the pair, like -c",
    "CASCLI_DRAFT": "the draft model, like --draft, if no flag names a model",
    "CASCLI_TARGET": "the target model, like --target, if no flag names a model",
    "CASCLI_HOME": "where weights are stored (default: your cache folder)",
    "CASCLI_THEME": "dark or light: colours for this background",
    "CASCLI_KERNELS": "0: no Triton kernels on a GPU, torch's own operations instead (slower)",
    "CASCLI_PDL": "0: no programmatic dependent launch of these kernels (Hopper and later)",
    "CASCLI_DEBUG": "1: show the traceback of errors",
}
"""Variables that do not correspond to a common option, and what they do."""


def known() -> list[str]:
    """Every variable that is read."""
    from cascli.settings import variables

    return sorted({*OWN, *variables()})


def unknown(environ: Mapping[str, str]) -> Iterator[str]:
    """A message for each variable with cascli's prefix that is not read, such as a misspelled one."""
    prefixed = [name for name in environ if name.startswith(PREFIX)]
    if not prefixed:  # before anything is imported
        return
    names = [name.removeprefix(PREFIX) for name in known()]
    for name in sorted(prefixed):
        if name.removeprefix(PREFIX) in names:
            continue
        hint = suggestion(name.removeprefix(PREFIX), names, prefix=PREFIX) or "; cascli --help lists the known ones."
        yield f"environment variable {name} is unknown and ignored{hint}"


def is_on(name: str) -> bool:
    """Whether a switch variable is set, and not to a word for no."""
    return os.environ.get(name, "").lower() not in ("", "0", "false", "f", "no", "n", "off")


def warn_unknown(*, quiet: bool = False) -> None:
    """Print a line on stderr for each unknown variable, unless only the result is wanted."""
    if not (quiet or is_on("CASCLI_QUIET")):
        for line in unknown(os.environ):
            print(f"cascli: {plain(line)}", file=sys.stderr)
