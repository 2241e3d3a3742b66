"""What is read, from which good files, and by which command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import yaml

from tests.fuzz import mutate

ANSWER = ["--max-new-tokens", "1", "-q", "--offline"]


@dataclass(frozen=True)
class Target:
    """One reader."""

    name: str
    file: str
    """Name of the changed file."""
    seeds: Sequence[Path]
    """Good files."""
    change: Callable[[bytes, Random], bytes]
    command: Callable[[Path], list[str]]
    """The arguments of cascli once the changed file is in place."""
    beside: Path | None = None
    """A folder to copy first; the changed file is placed in the copy."""

    def place(self, data: bytes, here: Path) -> Path:
        """Write changed bytes to the place they are read from."""
        folder = here / "in"
        shutil.rmtree(folder, ignore_errors=True)
        if self.beside:
            shutil.copytree(self.beside, folder)
        folder.mkdir(exist_ok=True)
        (folder / self.file).write_bytes(data)
        return folder / self.file


def as_json(data: bytes, random: Random) -> bytes:
    """Change the values of a JSON document, or sometimes its bytes."""
    if random.random() < 0.25:
        return mutate.of_bytes(data, random)
    return json.dumps(mutate.of_tree(json.loads(data), random)).encode("utf-8", "surrogatepass")


def as_lines(data: bytes, random: Random) -> bytes:
    """Change one line of a JSON Lines file, as JSON."""
    lines = data.splitlines()
    place = random.randrange(len(lines))
    lines[place] = as_json(lines[place], random)
    return b"\n".join(lines)


def as_yaml(data: bytes, random: Random) -> bytes:
    """Change the values of a YAML document, or sometimes its bytes."""
    if random.random() < 0.25:
        return mutate.of_bytes(data, random)
    return yaml.safe_dump(mutate.of_tree(yaml.safe_load(data), random), allow_unicode=True).encode(
        "utf-8", "surrogatepass"
    )


def headed(data: bytes, random: Random) -> bytes:
    """Change mostly the header of a binary file, where counts and lengths are."""
    return mutate.of_bytes(data, random, within=len(data) // 8 if random.random() < 0.9 else None)


def targets(home: Path) -> list[Target]:
    """All targets; `seeds.make` has written their good files under `home`."""
    seeds, model = home / "seeds", home / "seeds" / "model"

    def generate(path: Path) -> list[str]:
        pair = path.parent / "pair.json.yaml"
        source = {"source": {"path": str(path if path.suffix == ".gguf" else path.parent)}}
        pair.write_text(json.dumps({"draft": source, "target": source}))
        return ["generate", "hi", "-c", str(pair), *ANSWER]

    def folder(name: str, change: Callable[[bytes, Random], bytes]) -> Target:
        return Target(f"folder {name}", name, [model / name], change, generate, beside=model)

    documents = [seeds / name for name in ("run.json", "compare.json", "bench.json", "table.json", "audit.json")]
    return [
        Target(
            "pair", "pair.yaml", [seeds / "pair.yaml"], as_yaml,
            lambda p: ["generate", "hi", "-c", str(p), *ANSWER],
        ),
        Target("sweep", "sweep.yaml", [seeds / "sweep.yaml"], as_yaml, lambda p: ["sweep", str(p), "--dry-run", "-q"]),
        Target(
            "prompts", "prompts.jsonl", [seeds / "prompts.jsonl"], as_lines,
            lambda p: ["generate", "--prompts", str(p), "-c", "tiny-random", *ANSWER],
        ),
        Target("show", "saved.json", documents, as_json, lambda p: ["show", str(p), "-v"]),
        Target("gguf", "model.gguf", [seeds / "qwen2.gguf", seeds / "llama.gguf"], headed, generate),
        folder("config.json", as_json),
        folder("tokenizer.json", as_json),
        folder("tokenizer_config.json", as_json),
        folder("generation_config.json", as_json),
        folder("model.safetensors", headed),
    ]  # fmt: skip


def named(found: Sequence[Target], name: str) -> Target:
    """Return the target with this name."""
    return next(target for target in found if target.name == name)
