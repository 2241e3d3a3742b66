"""Published prompt sets, by name. Their files are in the cache folder, where the user puts them. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cascli.errors import UsageError
from cascli.files import PROMPTS_BYTES, text_of
from cascli.prompts import Prompt, prompts_in
from cascli.weights.home import cache_home

_FASTCHAT = "https://raw.githubusercontent.com/lm-sys/FastChat/d04ce6453ae016d9e03626b679c07aa1388dcbee"
_SPEC_BENCH = "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main"
_NOT_FETCHED = "FULL BENCHMARK DATA SHOULD BE FETCHED"
"""SPEED-Bench's placeholder for a text that its own script fetches from elsewhere."""


@dataclass(frozen=True)
class PromptSet:
    """One published file of questions."""

    prompts: int
    """Number of prompts; a file with more or fewer is not this set."""
    about: str
    get: str
    """Commands that put the file at its path, given as `{path}`."""


SETS = {
    "mt-bench": PromptSet(
        80,
        "MT-Bench, 80 conversations of two turns in eight categories (Zheng et al. 2023)",
        f"curl -L --create-dirs -o {{path}} {_FASTCHAT}/fastchat/llm_judge/data/mt_bench/question.jsonl",
    ),
    "spec-bench": PromptSet(
        480,
        "Spec-Bench, MT-Bench and five more tasks of 80 prompts each (Xia et al. 2024)",
        f"curl -L --create-dirs -o {{path}} {_SPEC_BENCH}/data/spec_bench/question.jsonl",
    ),
    "speed-bench": PromptSet(
        880,
        "SPEED-Bench, its qualitative split of eleven categories; its licence forbids redistribution",
        "git clone https://github.com/NVIDIA/Model-Optimizer && cd Model-Optimizer/examples/specdec_bench\n"
        "  pip install -r requirements.txt && python prepare_data.py --dataset speed --config qualitative\n"
        "  mkdir -p {path.parent}\n"
        "  python -c \"import pandas; pandas.read_parquet('data/speed/qualitative')"
        ".to_json('{path}', orient='records', lines=True)\"",
    ),
}


def set_path(name: str) -> Path:
    """Where the file of a set is expected."""
    return cache_home() / "prompts" / f"{name}.jsonl"


def prompt_set(name: str, limit: int | None = None) -> list[Prompt]:
    """The prompts of a published set, in the order of its file.

    Raises:
        UsageError: the file does not exist, or is not the set.
    """
    path, known = set_path(name), SETS[name]
    if not path.exists():
        raise UsageError(
            f"{name}: {known.about}. Its file is not here yet; to get it:\n  {known.get.format(path=path)}"
        )
    text = text_of(path, PROMPTS_BYTES, encoding="utf-8-sig")
    if text.lstrip()[:1] == "<":
        raise UsageError(
            f"{path}: a web page, not the file it shows; to get the file:\n  {known.get.format(path=path)}"
        )
    prompts = prompts_in(text, str(path))
    if any(turn.startswith(_NOT_FETCHED) for prompt in prompts for turn in prompt.turns):
        raise UsageError(f"{path}: its texts are still missing; to get them:\n  {known.get.format(path=path)}")
    if len(prompts) != known.prompts:
        raise UsageError(
            f"{path}: holds {len(prompts)} prompts, but {name} has {known.prompts}; give your own file by its path"
        )
    return prompts[:limit]
