"""benchmarks/draft_length.py runs through on a tiny pair, and its file contains what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import draft_length


def test_every_kind_has_its_best_length_and_its_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/draft_length.py", "-c", "tiny-random"])
    before, out = torch.get_num_threads(), tmp_path / "found.json"
    draft_length.main(
        ["-c", "tiny-random", "--dtype", "float32", "-k", "1", "2", "--stops", "rate", "max-q", "--kinds", "summary",
         "code", "--prompts", "2", "--max-new-tokens", "8", "--runs", "1", "-o", str(out)]
    )  # fmt: skip
    torch.set_num_threads(before)
    *told, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert document == json.loads(out.read_text()) and document["schema"] == "cascli.draft-length/1"
    assert document["threads"] == 1 and document["command"].startswith("python -m benchmarks.draft_length")
    for kind in document["kinds"].values():
        speeds = {spec: each["speed"] for spec, each in kind["strategies"].items()}
        assert len(speeds) == 4 and kind["best_fixed"] in ("speculative:k=1", "speculative:k=2")
        assert kind["best_fixed_speed"] == max(speeds["speculative:k=1"], speeds["speculative:k=2"])
        rate = kind["stops_over_best_fixed"]["speculative:stop=rate,k=auto"]
        assert rate == pytest.approx(speeds["speculative:stop=rate,k=auto"] / kind["best_fixed_speed"])
        assert kind["prompts"] == 2 and kind["oracle_speed"] > 0 and kind["v"]["1"] == 1
        assert all(each["same_as_target"] for each in kind["strategies"].values())
    assert sum("of the best fixed" in line for line in told) == 2 * len(document["kinds"])


def test_only_the_first_turn_of_a_conversation_is_used() -> None:
    kinds = draft_length.by_kind(None, 5)
    assert len(kinds) == 6 and all(len(prompt.turns) == 1 for prompts in kinds.values() for prompt in prompts)
