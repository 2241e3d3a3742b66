"""The command line, in this process, in one of its own, or as a line of a shell."""

import os
import subprocess
import sys
from collections.abc import Mapping

from typer.testing import CliRunner, Result

from cascli.cli.app import app


def invoke(*arguments: str, stdin: str | bytes | None = None) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, list(arguments), input=stdin)


def program(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "cascli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which `cascli` is the one under test."""
    command = line.replace("cascli", f"{sys.executable} -m cascli")
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=os.environ)
