"""Prompt files."""

from __future__ import annotations

from pathlib import Path

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


def test_a_null_category_is_none(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "category": null}\n{"prompt": "b", "category": 3}\n{"prompt": "c"}\n')
    assert [prompt.category for prompt in read_prompts(file)] == ["", "3", ""]
