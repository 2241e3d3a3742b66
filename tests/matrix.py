"""Run the tests parametrized by architecture and write their results into docs/limits.md: `make docs`."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.pairs import EVERY_ARCHITECTURE

PAGE = Path(__file__).parent.parent / "docs" / "limits.md"
NAMES = {
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mistral": "Mistral (sliding window)",
    "gemma2": "Gemma 2 (alternating windows)",
    "gemma3_text": "Gemma 3 (windows of its own)",
    "gpt_neox": "GPT-NeoX (Pythia)",
    "gpt2": "GPT-2",
    "t5": "T5 v1.0 (encoder-decoder)",
    "t5_v1_1": "T5 v1.1, FLAN-T5 (encoder-decoder)",
}
COLUMNS = {
    "test_lossless_strategies_write_what_transformers_writes": "greedy = `generate`",
    "test_assisted_generation_agrees": "greedy = assisted generation",
    "test_sampled_texts_follow_one_law_here_and_there": "sampled law = `generate`'s",
    "test_logits_after_random_truncations_equal_a_fresh_forward": "cache after random rewinds",
    "test_numerics_pass_on_every_architecture": "`verify`: cache, blocks, window",
}
FILES = ["test_against_transformers.py", "test_cache.py", "test_verify.py"]


class Outcomes:
    """A pytest plug-in that records which architecture passed which tests."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], list[bool]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        match = re.search(r"::(\w+)\[(.+)\]$", report.nodeid)
        if report.when != "call" or match is None or match[1] not in COLUMNS:
            return
        for name in EVERY_ARCHITECTURE:
            if name in re.split(r"-", match[2]):
                self.found[name, match[1]].append(report.passed)


def table(outcomes: Outcomes) -> str:
    lines = ["| architecture | " + " | ".join(COLUMNS.values()) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    for name in EVERY_ARCHITECTURE:
        cells = [cell(outcomes.found[name, test]) for test in COLUMNS]
        lines.append(f"| {NAMES[name]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(results: list[bool]) -> str:
    return "–" if not results else "yes" if all(results) else "NO"


def main() -> int:
    outcomes = Outcomes()
    here = Path(__file__).parent
    chosen = " or ".join(COLUMNS)
    code = pytest.main(["-q", "-k", chosen, *(str(here / file) for file in FILES)], plugins=[outcomes])
    text = PAGE.read_text(encoding="utf-8")
    block = f"<!-- matrix -->\n{table(outcomes)}\n<!-- /matrix -->"
    PAGE.write_text(re.sub(r"<!-- matrix -->.*<!-- /matrix -->", lambda _: block, text, flags=re.S), encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
