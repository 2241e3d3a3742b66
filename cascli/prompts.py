"""Prompts from a flag, a pipe or a file. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cascli.errors import UsageError
from cascli.files import PROMPTS_BYTES, json_of, printed, text_of


@dataclass(frozen=True)
class Prompt:
    """One conversation: its user turns in order, and the other fields of its line in the file."""

    turns: tuple[str, ...]
    id: str = ""
    category: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    ids: tuple[int, ...] = ()
    """Token ids in place of text; there is then a single, empty turn."""


def read_prompts(path: Path, limit: int | None = None) -> list[Prompt]:
    """Read one JSON object per line with `prompt`, or `turns` as in Spec-Bench's question file.

    A prompt without an id gets its position in the file as id, since its random numbers are derived from the id.

    Raises:
        UsageError: a missing file, a line that is not such an object, no prompt at all, or two with the same id.
    """
    return prompts_in(text_of(path, PROMPTS_BYTES, encoding="utf-8-sig"), str(path), limit)


def prompts_in(text: str, name: str, limit: int | None = None) -> list[Prompt]:
    """Parse prompts from the text of a file with one JSON object per line; errors refer to it as `name`.

    Raises:
        UsageError: a line that is not such an object, no prompt at all, or two with the same id.
    """
    lines = text.removeprefix("\ufeff").split("\n")
    located = [(line, f"{name}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    parsed = [_parse(line, where, place) for place, (line, where) in enumerate(located, 1)]
    prompts = [prompt for prompt, _ in parsed]
    if not prompts:
        raise UsageError(f"{name}: no prompts found; expected one JSON object per line with 'prompt' or 'turns'")
    _check_ids(parsed, [where for _, where in located])
    return prompts[:limit]


def _check_ids(parsed: Sequence[tuple[Prompt, bool]], places: Sequence[str]) -> None:
    seen: dict[str, tuple[str, bool]] = {}
    for (prompt, named), where in zip(parsed, places, strict=True):
        other, other_named = seen.setdefault(prompt.id, (where, named))
        if other == where:
            continue
        if named and other_named:
            raise UsageError(f"{where}: two prompts have the id '{prompt.id}' (the other: {other})")
        without, other = (where, other) if other_named else (other, where)
        raise UsageError(
            f"{without}: this prompt has no id, so its position is its id, but {other} has the id '{prompt.id}'.\n"
            "Give every prompt an id, or none."
        )


def builtin() -> list[Prompt]:
    """The thirty prompts that ship with cascli, over six kinds of task, in file order."""
    return read_prompts(Path(__file__).parent / "data" / "prompts.jsonl")


CALIBRATION_PROMPTS = 12
"""Maximum number of prompts used to choose settings before the others are measured."""


def split_for_calibration(prompts: Sequence[Prompt], limit: int | None = None) -> tuple[list[Prompt], list[Prompt]]:
    """Split prompts into those to measure and others for choosing settings beforehand; no text is in both.

    The others are spread evenly over the prompts beyond the limit; if there are none, they are cascli's own. Of
    cascli's own prompts, the last two of each kind are held back for this, so that both sets cover all kinds.
    """
    own = builtin()
    held_out = [prompt for kind in _kinds(own) for prompt in kind[-CALIBRATION_PROMPTS // len(_kinds(own)) :]]
    if [prompt.turns for prompt in prompts] == [prompt.turns for prompt in own]:
        return [prompt for prompt in own if prompt not in held_out][:limit], held_out
    measured = list(prompts[:limit])
    texts = {turn for prompt in measured for turn in prompt.turns}
    left, others = (
        [each for each in group if not texts & {*each.turns}] for group in (prompts[len(measured) :], held_out)
    )
    step = max(1, len(left) // CALIBRATION_PROMPTS)
    return measured, left[::step][:CALIBRATION_PROMPTS] or others


def _kinds(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    kinds: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        kinds.setdefault(prompt.category, []).append(prompt)
    return list(kinds.values())


def _parse(line: str, where: str, place: int) -> tuple[Prompt, bool]:
    """Parse a line; return the prompt, and whether its id is its own, or its place in the file."""
    data = json_of(line, where)
    if not isinstance(data, dict) or not ({"prompt", "turns"} & data.keys()):
        raise UsageError(f"{where}: expected an object with 'prompt' or 'turns'")
    turns = _turns(data.pop("prompt", None), data.pop("turns", None), where)
    named = bool({"question_id", "id"} & data.keys())
    name = data.pop("question_id", data.pop("id", place))
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise UsageError(f"{where}: an id must be a string or an integer (got {printed(name)})")
    given = data.pop("category", None)
    category = "" if given is None else str(given)
    try:
        "".join((*turns, str(name), category)).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise UsageError(f"{where}: {half} is half of a surrogate pair, not a character") from None
    return Prompt(tuple(turns), str(name), category, data), named


def _turns(prompt: object, turns: object, where: str) -> list[str]:
    """The turns of a line, which has `prompt` or `turns`.

    Raises:
        UsageError: the line has both, or a value is empty or not text; the message starts with `where`.
    """
    if prompt is not None and turns is not None:
        raise UsageError(f"{where}: give 'prompt' or 'turns', not both")
    texts = [prompt] if turns is None else turns
    if not isinstance(texts, list) or not all(isinstance(turn, str) for turn in texts):
        raise UsageError(f"{where}: 'prompt' must be a string, 'turns' a list of strings")
    if not texts or not all(texts):
        what = "'prompt'" if turns is None else "a turn" if texts else "'turns'"
        raise UsageError(f"{where}: {what} is empty")
    return texts
