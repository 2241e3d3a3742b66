"""The speeds that llama.cpp's own programs print, if their paths are given."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def target_speed(bench: Path, model: Path, threads: int, tokens: int) -> float:
    """Return the tokens per second of `llama-bench` writing with one model.

    Raises:
        subprocess.CalledProcessError: the program failed.
    """
    command = [bench, "-m", model, "-p", "0", "-n", str(tokens), "-t", str(threads), "-r", "3", "-o", "json"]
    return float(json.loads(_run(command))[0]["avg_ts"])


def speculative_speed(
    program: Path, target: Path, draft: Path, threads: int, k: int, prompts: Sequence[str], tokens: int
) -> dict[str, Any]:
    """Return tokens per second (total over total) and acceptance of `llama-speculative` (or `-simple`) over prompts.

    Raises:
        subprocess.CalledProcessError: the program failed.
        ValueError: its report could not be read.
    """
    decoded = seconds = drafted = accepted = 0.0
    flags = _flags(program, k)
    for prompt in prompts:
        command = [program, "-m", target, "-md", draft, "-p", prompt, "-n", str(tokens)]
        report = _run([*command, "-t", str(threads), "-td", str(threads), "--temp", "0", *flags], both=True)
        found = re.search(r"decoded\s+(\d+) tokens in\s+([\d.]+) seconds", report)
        counts = [re.search(rf"n_{name}\s*=\s*(\d+)", report) for name in ("drafted", "accept")]
        if found is None or None in counts:
            raise ValueError(f"{program.name} printed no speed that is known here")
        decoded, seconds = decoded + float(found[1]), seconds + float(found[2])
        drafted, accepted = (
            total + float(count[1]) for total, count in zip((drafted, accepted), counts, strict=True) if count
        )
    return {"tokens_per_second": decoded / seconds, "acceptance": accepted / drafted if drafted else None}


def _flags(program: Path, k: int) -> list[str]:
    """Return the flags by which this release of the program drafts k tokens whatever its confidence."""
    known = _run([program, "--help"], both=True)
    if "--spec-type" in known:
        return ["--spec-type", "draft-simple", "--spec-draft-n-max", str(k), "--spec-draft-p-min", "0"]
    return ["--draft-max", str(k), "--draft-p-min", "0"]


def _run(command: Sequence[str | Path], *, both: bool = False) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr if both else done.stdout
