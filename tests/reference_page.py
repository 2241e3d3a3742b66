"""Write docs/cli.md, every command's `--help`: `python -m tests.reference_page` (`--check` only compares)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
COMMANDS = (
    *("generate", "chat", "compare", "advise"),
    *("sweep", "eval", "show", "verify", "bench", "pairs", "pairs path", "pairs rm", "pull"),
    *("init", "strategies"),
)
START = """# Command reference

Every command's `--help`, written by `make docs`. [Using cascli](using.md) says it in fewer words.
"""


def help_of(*command: str) -> str:
    """The help of a command, as printed in a terminal of 100 columns without colour."""
    env = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "_TYPER_FORCE_DISABLE_TERMINAL": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "cascli", *command, "--help"], capture_output=True, text=True, env=env, check=True
    )
    lines = (line.rstrip() for line in ended.stdout.strip().splitlines())
    return "\n".join(lines).replace("Usage: python -m cascli", "Usage: cascli")


def page() -> str:
    """The whole page."""
    parts = [START, f"```text\n{help_of()}\n```\n"]
    parts += [f"## cascli {name}\n\n```text\n{help_of(*name.split())}\n```\n" for name in COMMANDS]
    return "\n".join(parts)


def main() -> None:
    """Write the page, or with `--check` fail if it differs from what the commands print."""
    if "--check" in sys.argv[1:]:
        if PAGE.read_text(encoding="utf-8") != page():
            sys.exit("docs/cli.md: is not what the commands' --help says; run make docs")
    else:
        PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
