"""Prompts from a flag, a pipe or a file. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cascli.errors import UsageError
from cascli.files import PROMPTS_BYTES, json_of, text_of


@dataclass(frozen=True)
class Prompt:
    """One conversation: its user turns in order, and what the file said besides."""

    turns: tuple[str, ...]
    id: str = ""
    category: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def read_prompts(path: Path, limit: int | None = None) -> list[Prompt]:
    """Read one JSON object a line with `prompt`, or `turns` as in Spec-Bench's question file.

    A prompt without an id has its place in the file for one, since its random numbers are derived from it.

    Raises:
        UsageError: a missing file, a line that is not such an object, no prompt at all, or two of one id.
    """
    return prompts_in(text_of(path, PROMPTS_BYTES, encoding="utf-8-sig"), str(path), limit)


def prompts_in(text: str, name: str, limit: int | None = None) -> list[Prompt]:
    """Likewise of a file's text; `name` is what errors call it.

    Raises:
        UsageError: a line that is not such an object, no prompt at all, or two of one id.
    """
    lines = text.removeprefix("\ufeff").split("\n")
    there = [(line, f"{name}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    prompts = [_parse(line, where, place) for place, (line, where) in enumerate(there, 1)]
    if not prompts:
        raise UsageError(f"{name}: holds no prompts; expected one JSON object a line with 'prompt' or 'turns'")
    _check_ids(prompts, [where for _, where in there])
    return prompts[:limit]


def _check_ids(prompts: Sequence[Prompt], places: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for prompt, where in zip(prompts, places, strict=True):
        if prompt.id in seen:
            raise UsageError(f"{where}: two prompts have the id '{prompt.id}' (the other one: {seen[prompt.id]})")
        seen[prompt.id] = where


def builtin() -> list[Prompt]:
    """Thirty prompts of our own over six kinds of task, in the order of the file."""
    return read_prompts(Path(__file__).parent / "data" / "prompts.jsonl")


def _parse(line: str, where: str, place: int) -> Prompt:
    data = json_of(line, where)
    if not isinstance(data, dict) or not ({"prompt", "turns"} & data.keys()):
        raise UsageError(f"{where}: expected an object with 'prompt' or 'turns'")
    turns = data.pop("turns", None) or [data.pop("prompt", None)]
    if not isinstance(turns, list) or not all(isinstance(turn, str) and turn for turn in turns):
        raise UsageError(f"{where}: 'prompt' must be text, 'turns' a list of texts")
    name = data.pop("question_id", data.pop("id", place))
    return Prompt(tuple(turns), str(name), str(data.pop("category", "")), data)
