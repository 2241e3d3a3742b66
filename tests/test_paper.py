"""The paper's sweeps load, state that their weights are not the paper's, and run on a local dataset and a tiny T5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cascli.cli.app import app
from cascli.config import load_config, pair_files, sweep_files
from cascli.strategies import parse
from cascli.sweeps.plan import load_plan
from cascli.sweeps.records import Records

PAIRS = ("flan-t5", "flan-t5-xl", "t5", "t5-3b")
RULES = {"chow", "diff", "opt", "token-v1", "token-v2", "token-v3"}
SWEEPS = {
    "paper-xsum": ("rouge-2", 1024, 64),
    "paper-cnn-dm": ("rouge-2", 2048, 128),
    "paper-wmt14": ("corpus-bleu", 80, 80),
}
LONG = " ".join(f"word{i}" for i in range(400))
ROWS: dict[str, list[dict[str, Any]]] = {
    "paper-xsum": [{"document": text, "summary": "It is warm.", "id": text[:3]} for text in ("A warm day.", LONG)],
    "paper-cnn-dm": [{"article": text, "highlights": "It is warm."} for text in ("A warm day.", LONG)],
    "paper-wmt14": [{"translation": {"en": text, "de": "Ein warmer Tag."}} for text in ("A warm day.", LONG)],
}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_paper_sweep_has_the_settings_of_the_paper(name: str) -> None:
    plan = load_plan(sweep_files()[name])
    assert (plan.task.metric, plan.max_prompt_tokens, plan.max_new_tokens) == SWEEPS[name]
    assert plan.temperatures == [0.0, 0.1, 0.5, 1.0]
    strategies = [parse(spec) for spec in plan.specs()]
    assert {"draft", "target", "cascade", "token-cascade", "speculative"} < {each.name for each in strategies}
    assert {each.params["rule"] for each in strategies if each.name == "speculative-cascade"} == {
        *RULES,
        "mentored",
        "bild",
    }
    assert {each.params["k"] for each in strategies if "k" in each.params} == {5}


@pytest.mark.parametrize("path", sweep_files().values(), ids=lambda path: path.stem)
def test_every_sweep_loads_with_its_pair(path: Path) -> None:
    load_config(load_plan(path).pair)


@pytest.mark.parametrize("path", [*(sweep_files()[name] for name in SWEEPS), *(pair_files()[name] for name in PAIRS)])
def test_files_state_that_the_weights_are_not_the_papers(path: Path) -> None:
    assert "not the paper's weights" in path.read_text(encoding="utf-8").lower()


@pytest.mark.parametrize("name", PAIRS)
def test_the_pairs_have_the_prefix_and_block_length_of_the_paper(name: str) -> None:
    pair = load_config(name)
    assert pair.prefix == "summarize: " and pair.defaults.num_speculative_tokens == 5
    draft, target = (str(model.source) for model in pair.models.values())
    assert "t5-small" in draft and any(size in target for size in ("large", "xl", "3b"))


@pytest.mark.parametrize("name", SWEEPS)
def test_a_paper_sweep_runs_unchanged_on_a_local_dataset(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with the dataset's name, next to the file, replaces the hub; prompts that are too long are cut."""
    for library in ("datasets", "rouge_score", "sacrebleu"):
        pytest.importorskip(library)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / f"{name}.yaml"
    file.write_bytes(sweep_files()[name].read_bytes())
    plan = load_plan(file)
    folder = tmp_path / str(plan.task.path)
    folder.mkdir(parents=True)
    folder.joinpath("validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
    # The tiny pair's tokens are bytes, so this cuts the second row's text.
    file.write_text(file.read_text().replace(f"max_prompt_tokens: {plan.max_prompt_tokens}", "max_prompt_tokens: 80"))
    flags = ["-c", "tiny-t5", "--max-new-tokens", "6", "--temperature", "0.5"]
    flags += [] if name == "paper-wmt14" else ["--limit", "1"]
    done = CliRunner().invoke(app, ["sweep", *flags, str(file), "-o", str(tmp_path / "out"), "-q", "--offline"])
    assert done.exit_code == 0, done.output
    records = list(Records(tmp_path / "out").read())
    prompts = 2 if name == "paper-wmt14" else 1
    assert len(records) == len(plan.specs()) * prompts and not [each.error for each in records if each.error]
    assert all(bool(each.counts) == (name == "paper-wmt14") for each in records)
    assert {each.counts[1] for each in records if each.counts} <= {4}  # the tokens of "Ein warmer Tag ."
    header = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert header["metric"] == SWEEPS[name][0]
    assert (tmp_path / "out" / "report.html").stat().st_size > 3000
