"""Prompt files."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascli.errors import UsageError
from cascli.prompts import read_prompts


def test_prompt_files_may_hold_any_character(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('\ufeff{"prompt": "a\u2028b\u0085c"}\r\n', encoding="utf-8")
    assert read_prompts(file)[0].turns == ("a\u2028b\u0085c",)


def test_a_null_key_is_treated_as_absent(tmp_path: Path) -> None:
    """Tables exported as JSON lines have every key on each line."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "turns": null}\n{"prompt": null, "turns": ["b", "c"], "id": 7}\n')
    found = read_prompts(file)
    assert [(prompt.turns, prompt.id, prompt.extra) for prompt in found] == [(("a",), "1", {}), (("b", "c"), "7", {})]


def test_a_surrogate_pair_is_one_character(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(r'{"prompt": "\ud83d\ude00"}')
    assert read_prompts(file)[0].turns == ("\U0001f600",)


@pytest.mark.parametrize("own_first", [True, False])
def test_an_id_that_is_the_position_of_a_prompt_without_one_is_reported_as_that(
    tmp_path: Path, own_first: bool
) -> None:
    file = tmp_path / "prompts.jsonl"
    lines = (
        ['{"prompt": "a", "id": 2}', '{"prompt": "b"}']
        if own_first
        else ['{"prompt": "b"}', '{"prompt": "a", "id": 1}']
    )
    file.write_text("\n".join(lines))
    own, without, name = (1, 2, 2) if own_first else (2, 1, 1)
    with pytest.raises(UsageError) as refused:
        read_prompts(file)
    assert str(refused.value).splitlines() == [
        f"{file}:{without}: this prompt has no id, so its position is its id, but {file}:{own} has the id '{name}'.",
        "Give every prompt an id, or none.",
    ]


def test_a_null_category_is_none(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "category": null}\n{"prompt": "b", "category": 3}\n{"prompt": "c"}\n')
    assert [prompt.category for prompt in read_prompts(file)] == ["", "3", ""]
