"""Files of prompts."""

from __future__ import annotations

from pathlib import Path

from cascli.prompts import read_prompts


def test_prompt_files_may_hold_any_character(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('\ufeff{"prompt": "a\u2028b\u0085c"}\r\n', encoding="utf-8")
    assert read_prompts(file)[0].turns == ("a\u2028b\u0085c",)
