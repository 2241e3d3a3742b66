"""Loading a draft model with a cut head: kept rows, packed layers, and what a pair file may specify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cascli import Pair, load_pair
from cascli.audit import numerics
from cascli.errors import ConfigError, UsageError
from cascli.models.cpu.int8_linear import Int8Linear
from cascli.models.cpu.packed_linear import PackedLinear
from cascli.models.cut_head import Cut, CutHead
from cascli.models.gpu.merged import merge
from tests.pairs import model, pair, stored_alone
from tests.test_packed_store import KINDS, packings  # noqa: F401 - a fixture

KEPT = [*range(60), 256]


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stored model that drafts for itself with a cut head, and a separate cache folder for both."""
    monkeypatch.setenv("CASCLI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("cascli.models.size.LARGE", 1)
    alone = stored_alone(tmp_path / "model")
    return {"draft": alone["target"] | {"vocab": 60}, "target": alone["target"]}


def logits(loaded: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(each.runner.forward(torch.arange(9), 9) for each in (loaded.draft, loaded.target))


@pytest.mark.parametrize("dtype", KINDS)
def test_packed_rows_equal_those_of_the_whole_head_and_are_cached(
    dtype: str,
    stored: dict[str, Any],
    tmp_path: Path,
    packings: list[str],  # noqa: F811
) -> None:
    first = load_pair(stored, dtype=dtype)
    ours, theirs = logits(first)
    assert torch.allclose(ours[:, KEPT], theirs[:, KEPT], atol=1e-5)
    assert bool((ours[:, 60:256] == -torch.inf).all())
    head = first.draft.model.lm_head
    assert isinstance(head, CutHead) and isinstance(head.layer, Int8Linear | PackedLinear)
    assert packings and len(list((tmp_path / "home" / "packed").iterdir())) == 2
    packings.clear()
    again = load_pair(stored, dtype=dtype)
    assert all(map(torch.equal, logits(again), (ours, theirs))) and not packings
    load_pair(stored | {"draft": stored["draft"] | {"vocab": 61}}, dtype=dtype)  # another cut, another file
    assert packings and len(list((tmp_path / "home" / "packed").iterdir())) == 3
    packings.clear()
    assert all(map(torch.equal, logits(load_pair(stored, dtype=dtype)), (ours, theirs))) and not packings


def test_the_audit_supports_a_cut_head_and_detects_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_pair(pair(300) | {"draft": model(1, 300) | {"vocab": 90}})
    found = list(numerics.numerics(loaded, 4))
    assert [check.status for check in found] == ["pass"] * 4
    right = loaded.draft.runner.forward

    def one_more(ids: torch.Tensor, rows: int) -> torch.Tensor:
        out = right(ids, rows).clone()
        out[:, 100] = 0.0
        return out

    monkeypatch.setattr(loaded.draft.runner, "forward", one_more)
    assert numerics.cache("draft", loaded.draft, loaded.vocab, 4).status == "fail"


def test_special_tokens_are_kept_and_a_file_may_list_the_others(tmp_path: Path) -> None:
    file = tmp_path / "ids.json"
    file.write_text("[7, 3,\n 3, 5]")
    assert Cut.of(str(file), 300, {256, 9999}).ids == (3, 5, 7, 256)
    assert Cut.of(2, 300, {1, 256}).ids == (0, 1, 256)
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump(pair(300) | {"draft": model(1, 300) | {"vocab": "ids.json"}}))
    assert load_pair(tmp_path / "pair.yaml").draft.model.lm_head.ids.tolist() == [3, 5, 7, 256]


@pytest.mark.parametrize(
    ("vocab", "words"),
    [
        (0, "draft.vocab: expected a number of token ids, 1 or more, or the path of a file of ids (got 0)"),
        (True, "draft.vocab: expected a number of token ids"),
        ([1, 2], "draft.vocab: expected a number of token ids"),
        (300, "draft.vocab: 300 cuts nothing off a head of 300 rows; leave it out."),
        (10**15, "cuts nothing off a head of 300 rows; leave it out."),
        ("absent.txt", "absent.txt: no such file"),
        ("empty.txt", "empty.txt: it is empty; expected a file of token ids."),
        ("words.txt", "words.txt: 'the' is not an id from 0 to 299; expected a file of token ids."),
        ("large.txt", "large.txt: '300' is not an id from 0 to 299"),
        ("negative.txt", "negative.txt: '-1' is not an id"),
    ],
)
def test_bad_input(vocab: object, words: str, tmp_path: Path) -> None:
    texts = {"empty": "", "words": "3 the", "large": "1\n300", "negative": "-1"}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    file = tmp_path / "pair.yaml"
    file.write_text(yaml.safe_dump(pair(300) | {"draft": model(1, 300) | {"vocab": vocab}}))
    with pytest.raises(UsageError) as error:
        load_pair(file)
    assert words in str(error.value) and str(error.value).startswith(f"{file}: draft.vocab: ")


def test_a_target_is_never_cut() -> None:
    with pytest.raises(UsageError, match="unknown key 'vocab'"):
        load_pair({"target": model(2, 300) | {"vocab": 90}})


def test_a_cut_head_is_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where layers have plain matrices."""
    monkeypatch.setattr("cascli.kernels.serve", lambda _: True)
    config = pair(300)
    cut = load_pair(config | {"draft": config["draft"] | {"vocab": 60}}, dtype="float16")
    why = merge(cut.draft.model)
    assert isinstance(why, str) and "plain" in why


@pytest.mark.parametrize("word", ["0000000009999", "9" * 30])
def test_ids_with_many_digits_are_read_as_numbers(word: str, tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_text(f"1 2 {word}")
    with pytest.raises(ConfigError, match="is not an id from 0 to 299"):
        Cut.of(str(file), 300, [])
